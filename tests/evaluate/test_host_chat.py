"""lm-eval's switch for chat models, and stops of special tokens, against its own `hf` model."""

import shutil
from typing import Any, cast

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.harness import LorageLM, run_tasks
from lorage_jax.evaluate.host_chat import NO_SYSTEM, HostChat, render_chat, selected_template
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.infer.generate import generate_tokens
from tests.evaluate.local_data import write_tasks
from tests.evaluate.test_harness import ShortHF, assert_same_results, hf, instances
from tests.tiny import byte_tokenizer, renamed

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}"
CUE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = f"{{% for m in messages %}}{TURN}{{% endfor %}}{CUE}"
NO_ROLE = (  # after Gemma's
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ bos_token }}" + CHATML
)
THINKS = CHATML + "{% if enable_thinking is defined %}{{ enable_thinking }}{{ other }}{% endif %}"
BRIEF = "Answer in a word."
TASKS = ["arc_easy", "winogrande", "gsm8k", "boolq"]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """folder(template) -> a tiny llama with this chat template."""

    def make(template):
        path = tmp_path_factory.mktemp("chat") / "model"
        shutil.copytree(tiny("llama")[0], path)
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(str(path))
        return path

    return make


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return TaskData(str(write_tasks(tmp_path_factory.mktemp("tasks"), records=4)))


@pytest.mark.parametrize(
    ("template", "chat", "turns"),
    [
        (CHATML, HostChat(True, BRIEF), 5),
        (CHATML, HostChat(True, None, False), 2),
        (NO_ROLE, HostChat(True, BRIEF), 4),
        (CHATML, HostChat(False, BRIEF), 0),
    ],
)
def test_chats_agree_with_the_hf_model(folder, local, template, chat, turns):
    """Prompts to the letter, scores to the last digit; also where system messages are refused."""
    path = folder(template)
    ours, theirs = LorageLM(str(path), max_gen_toks=12), cast(Any, hf(path))
    results = [
        run_tasks(lm, {name: local.load(name, 1) for name in TASKS}, None, 1234, chat)
        for lm in (ours, theirs)
    ]
    assert_same_results(*results, TASKS)
    asked = results[0][1]["arc_easy"][0]["arguments"][0][0]
    assert asked.count("<|im_start|>") == turns
    assert (BRIEF in asked) == (chat.system_instruction is not None and template == CHATML)
    assert ours.system_dropped == (template == NO_ROLE)


def test_the_members_that_lm_eval_reads(folder, caplog):
    path = folder(THINKS)
    options: dict[str, Any] = {"enable_thinking": False, "chat_template_args": {"other": 3}}
    ours = LorageLM(str(path), **options)
    theirs = cast(Any, ShortHF(str(path), dtype="float32", device="cpu", **options))
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
    for history, cue in ((chat[:1], True), (chat, False)):
        text = ours.apply_chat_template(history, cue)
        assert text == theirs.apply_chat_template(history, cue)
    assert "False3" in ours.apply_chat_template(chat[:1])
    assert ours.tokenizer_name == theirs.tokenizer_name
    for name in (True, False, "default"):
        assert ours.chat_template(name) == theirs.chat_template(name)
    with pytest.raises(ConfigError, match="enable_thinking=True is not supported"):
        LorageLM(str(path), enable_thinking=True)
    refusing = LorageLM(str(folder(NO_ROLE)))
    for _ in range(2):
        assert refusing.apply_chat_template([{"role": "system", "content": "x"}, *chat[:1]])
    assert [record.getMessage() for record in caplog.records].count(NO_SYSTEM) == 1


def test_what_cannot_be_rendered_is_said_in_a_sentence(folder, tiny):
    with pytest.raises(ConfigError, match="has no chat template"):
        HostChat(True).check(LorageLM(str(tiny("llama")[0])).tokenizer)
    with pytest.raises(ConfigError, match="goes with --apply-chat-template"):
        HostChat(fewshot_as_multiturn=False)
    picky = byte_tokenizer()
    picky.chat_template = "{{ raise_exception('never') }}"
    for roles in (("user",), ("system", "user")):
        chat = [{"role": role, "content": "hi"} for role in roles]
        with pytest.raises(ConfigError, match="refuses messages of the roles user: never"):
            render_chat(picky, chat, True, {})

    class Several:
        chat_template = {"default": "a", "tools": "b"}  # noqa: RUF012

    assert selected_template(Several, True) == "a" and selected_template(Several, "tools") == "b"
    with pytest.raises(ConfigError, match="no chat template 'oops'; the tokenizer has default, to"):
        selected_template(Several, "oops")


def test_stops_of_special_tokens_are_those_of_hf(tiny, tmp_path):
    """A token of the answer becomes `<|end|>`: `until` finds it, though answers lack it."""
    asked, plain = "Say something", byte_tokenizer()
    model = LorageLM(str(tiny("llama")[0])).model
    (ids,) = generate_tokens(model, [plain(asked).input_ids], max_new_tokens=24)
    at = 2
    names = {ids[at - 1]: "Q", ids[at]: "<|end|>", ids[at + 1]: "Z"}
    tokenizer = renamed(plain, names, "<|end|>")
    shutil.copytree(tiny("llama")[0], tmp_path / "model")
    tokenizer.save_pretrained(str(tmp_path / "model"))
    theirs = ShortHF(str(tmp_path / "model"), dtype="float32", device="cpu", batch_size=1)
    ours, free = LorageLM(str(tmp_path / "model")), tokenizer.decode(ids, skip_special_tokens=True)
    stops = [tokenizer.decode(ids[a:b]) for a, b in ((at, at + 1), (at, at + 2), (at - 1, at + 1))]
    assert all("<|end|>" in stop for stop in stops)
    for until in (*([stop] for stop in stops), ["never", *stops], ["|"], ["never"]):
        settings = {"max_gen_toks": 24, "until": until}
        requests = instances("generate_until", (asked, settings))
        (found,), (wanted,) = ours.generate_until(requests), theirs.generate_until(requests)
        assert found == wanted
        assert (found == free) == (until == ["never"])
