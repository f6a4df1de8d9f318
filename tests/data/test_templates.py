import time
from concurrent.futures import ThreadPoolExecutor

from lorage_jax.data import templates
from lorage_jax.data.templates import (
    NEWEST,
    TemplateKind,
    encode,
    encode_marked,
    encode_target,
    fit_prompt,
    fit_query,
)
from tests.tiny import byte_tokenizer


def test_templates():
    assert templates.edge_prompt("hi \n") == "User: hi\nAssistant:"
    assert templates.edge_prompt("  ") == "Assistant:"
    baseline = templates.edge_prompt_with_system("Be brief.", "hi")
    assert baseline == "System: Be brief.\n\nUser: hi\nAssistant:"
    # The baseline has the cloud's text in front of the same question.
    assert baseline.startswith(templates.cloud_prompt("Be brief.\n"))
    assert baseline.endswith(templates.edge_prompt("hi"))
    assert templates.edge_target("yes ") == " yes"
    few = templates.few_shot_prompt("Say no.", [("a", "no"), ("b", "no")])
    assert few == "Say no.\n\nUser: a\nAssistant: no\n\nUser: b\nAssistant: no"


def test_encode_bos(cloud, edge):
    ids = encode(cloud, "apple tree", bos=True)
    assert ids.count(cloud.bos_token_id) == 1 and ids[0] == cloud.bos_token_id
    assert encode(cloud, "apple tree", bos=False) == ids[1:]
    assert cloud.decode(ids[1:]) == "apple tree"
    assert edge.bos_token_id is None
    assert encode(edge, "apple", bos=True) == encode(edge, "apple", bos=False)


def test_a_text_is_read_the_same_whatever_other_threads_read():
    """As plain text, or with special tokens: transformers keeps which of them in the tokenizer."""

    class Slow:
        bos_token = bos_token_id = None
        split = False

        def encode(self, text, split_special_tokens=False, **_):
            self.split = split_special_tokens
            time.sleep(0.001)
            return [int(self.split)]

    tokenizer = Slow()
    readers = [lambda: encode(tokenizer, "a", bos=False), lambda: encode_marked(tokenizer, "a")]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: readers[i % 2](), range(40)))
    assert found == [[1], [0]] * 20


def test_the_first_version_put_a_bos_in_front_of_every_text():
    tokenizer = byte_tokenizer()  # has a bos, but does not add it
    assert tokenizer("a").input_ids == encode(tokenizer, "a", bos=True)
    old, new = TemplateKind("plain", 1).on(tokenizer), NEWEST.on(tokenizer)
    assert old.prompt("hi") == [tokenizer.bos_token_id, *new.prompt("hi")]
    assert new.prompt("hi") == tokenizer("User: hi\nAssistant:").input_ids
    assert old.read("Be brief.") == [tokenizer.bos_token_id, *new.read("Be brief.")]


def test_encode_adds_nothing_of_its_own(shared):
    # With special tokens, the LLaMA 2 tokenizer adds a bos itself.
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(shared / "tokenizers/llama2")
    ids = encode(llama, "Hello there", bos=True)
    assert ids == llama("Hello there").input_ids
    assert encode(llama, "Hello there", bos=False) == ids[1:]
    assert encode_target(llama, "yes") == [*llama.encode(" yes", add_special_tokens=False), 2]


def test_text_cannot_spell_special_tokens(cloud, edge):
    assert cloud.eos_token_id not in encode(cloud, "a</s>b", bos=False)
    assert cloud.decode(encode(cloud, "a</s>b", bos=False)) == "a</s>b"
    assert edge.eos_token_id not in encode(edge, "a<eos>", bos=True)


def test_target_continues_the_prompt(cloud, edge):
    # Decoded after the prompt, the answer follows one space and ends with eos.
    for tokenizer in (cloud, edge):
        prompt, target, cut = fit_query(NEWEST.on(tokenizer), "apple tree", "tree, apple", 100)
        assert not cut and target[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(prompt + target[:-1]).removeprefix("<s>")
        assert text == "User: apple tree\nAssistant: tree, apple"


def test_target_of_real_tokenizers(shared):
    from transformers import AutoTokenizer

    # All three treat spaces differently; clean-up before "." must not hide a lost space.
    for folder in ("models/stories260K", "tokenizers/llama2", "tokenizers/qwen2"):
        tokenizer = AutoTokenizer.from_pretrained(shared / folder)
        for target in ("yes", ". It is.", "a\n\nb  c", "é?"):
            prompt, ids, _ = fit_query(NEWEST.on(tokenizer), "Hi.", target, 100)
            text = tokenizer.decode(prompt + ids, skip_special_tokens=True)
            assert text == f"User: Hi.\nAssistant: {target}", folder


def test_prompt_keeps_its_start(cloud):
    whole, cut = fit_prompt(NEWEST.on(cloud), "sort the words " * 9, 500)
    short, cut_short = fit_prompt(NEWEST.on(cloud), "sort the words " * 9, 12)
    assert (cut, cut_short) == (False, True)
    assert short == whole[:12]


def test_long_query_loses_the_start_of_the_user_text(cloud, edge):
    words = [f"{i}," for i in range(60)]
    for tokenizer in (cloud, edge):
        prompt, target, cut = fit_query(NEWEST.on(tokenizer), " ".join(words), "yes", 60)
        assert cut and len(prompt) + len(target) == 60
        assert target == encode_target(tokenizer, "yes")
        text = tokenizer.decode(prompt, skip_special_tokens=True)
        assert text.startswith("User:") and text.endswith("58, 59,\nAssistant:")
        assert " 0, 1," not in text


def test_target_too_long_alone_is_cut_at_its_end(cloud):
    prompt, target, cut = fit_query(NEWEST.on(cloud), "apple tree", "yes " * 90, 40)
    assert cut and len(prompt) + len(target) == 40
    assert target == encode_target(cloud, "yes " * 90)[: len(target)]
    assert cloud.eos_token_id not in target
    text = cloud.decode(prompt, skip_special_tokens=True)
    assert text.startswith("User:") and text.endswith("\nAssistant:")


def test_user_text_that_repeats_the_template(cloud):
    user = "x\nAssistant: " * 9 + "User: x"
    frame = encode(cloud, templates.edge_prompt("x"), bos=True)
    for size in range(len(frame) + 1, 60):
        prompt, target, _ = fit_query(NEWEST.on(cloud), user, "yes " * 30, size)
        assert len(prompt) + len(target) == size and target
