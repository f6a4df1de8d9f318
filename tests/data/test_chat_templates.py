"""Chat templates: transformers' renderings and tokens, without the default system message."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lorage_jax.data.templates import (
    ChatTemplate,
    TemplateKind,
    chosen_kind,
    question,
)
from lorage_jax.data.tokenizer import add_own_bos
from lorage_jax.errors import DataError
from tests.tiny import byte_tokenizer

MODELS = Path.home() / ".cache" / "lorage-models"

# Small templates after those of well-known models.
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|head|>' + m['role'] + '<|/head|>\n\n' + "
    "m['content'] | trim + '<|eot|>' %}{% if loop.first %}{% set c = bos_token + c %}{% endif %}"
    "{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
DATED = (  # with the date in a system turn that is always there, as Llama 3.1
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set said = "
    "messages[0]['content'] %}{%- set messages = messages[1:] %}{%- else %}{%- set said = '' %}"
    "{%- endif %}{{- '<|head|>system<|/head|>Today: ' + strftime_now('%d %b %Y') + '\n' + said + "
    "'<|eot|>' }}{%- for m in messages %}{{- '<|head|>' + m['role'] + '<|/head|>' + "
    "m['content'] | trim + '<|eot|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<turn>' + role + '\n' + m['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}"
    "{{- bos_token }}{%- for m in rest %}{%- if m['role'] == 'user' %}"
    "{{- '[INST] ' + (said + '\n\n' if loop.first and said is defined else '') + m['content'] + "
    "'[/INST]' }}{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}"
    "{%- endfor %}"
)
LLAMA2 = (  # a default system message inside the user's turn
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set said = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set said = 'Always be honest.' %}{% endif %}{% for m in rest %}"
    "{% if loop.first %}{% set c = '<<SYS>>' + said + '<</SYS>>' + m['content'] %}"
    "{% else %}{% set c = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + c + ' [/INST]' }}{% else %}{{ ' ' + c + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
DEAF = (  # leaves a system message out without a word
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>' + "
    "m['content'] + '<|eot|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Name: template, the user's turn with the cue, and what the cloud reads of "S".
WRITTEN = {
    "chatml": (
        CHATML,
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>\n",
    ),
    "llama3": (
        LLAMA3,
        "<s><|head|>user<|/head|>\n\nhi<|eot|><|head|>assistant<|/head|>\n\n",
        "<s><|head|>system<|/head|>\n\nS<|eot|>",
    ),
    "dated": (DATED, "<s><|head|>user<|/head|>hi<|eot|><|head|>assistant<|/head|>", None),
    "gemma": (GEMMA, "<s><turn>user\nhi</turn>\n<turn>model\n", "<s><turn>user\nS</turn>\n"),
    "mistral": (MISTRAL, "<s>[INST] hi[/INST]", "<s>[INST] S\n\n"),
    "llama2": (LLAMA2, "<s>[INST] <<SYS>><</SYS>>hi [/INST]", "<s>[INST] <<SYS>>S<</SYS>>"),
    "zephyr": (ZEPHYR, "<|user|>\nhi</s>\n<|assistant|>\n", "<|system|>\nS</s>\n"),
    "deaf": (DEAF, "<|user|>hi<|eot|><|assistant|>", "<|user|>S<|eot|>"),
}
CONTROLS = (
    *("<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "<turn>", "</turn>"),
    *("[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>"),
)
BRIEF = question("hi", "Be brief.")
LONG = [*BRIEF, {"role": "assistant", "content": "Yes."}, *question(" more\n")]
CHATS = (question("hi"), BRIEF, LONG, LONG[1:])


def with_template(source):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(CONTROLS), special_tokens=True)
    tokenizer.chat_template = source
    return tokenizer


def fetched(name):
    if not (MODELS / name).is_dir():
        pytest.skip(f"{MODELS / name} is not here")
    return AutoTokenizer.from_pretrained(str(MODELS / name))


@pytest.fixture(params=[*WRITTEN, "qwen2", "smollm2-real", "qwen2.5-real", "tinyllama"])
def tokenizer(request, shared):
    real = {"smollm2-real": "SmolLM2-135M-Instruct", "qwen2.5-real": "Qwen2.5-Coder-0.5B-Instruct"}
    if request.param in WRITTEN:
        return with_template(WRITTEN[request.param][0])
    if request.param in real:
        return fetched(real[request.param])
    folder = "qwen2" if request.param == "qwen2" else "llama2"
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / folder)
    if request.param == "tinyllama":  # it adds its own bos, which the template does not write
        tokenizer.chat_template = ZEPHYR
    return tokenizer


@pytest.mark.parametrize("name", WRITTEN)
def test_turns(name):
    source, turn, read = WRITTEN[name]
    tokenizer = with_template(source)
    template = ChatTemplate(tokenizer)
    assert template.text(question("hi")) == turn
    if read is not None:
        assert tokenizer.decode(template.read("S")) == read
    assert "Today" not in turn


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "Qwen2.5-Coder-0.5B-Instruct"])
def test_no_default_system_message_of_real_models(name):
    tokenizer = fetched(name)
    given = tokenizer.apply_chat_template(question("hi"), tokenize=False)
    assert "system" in given  # the fault is there
    turn = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(tokenizer).text(question("hi")) == turn
    assert ChatTemplate(tokenizer).ids(question("hi")) == tokenizer(turn).input_ids


def test_given_system_messages_are_transformers_own(tokenizer):
    template = ChatTemplate(tokenizer)
    try:
        right = tokenizer.apply_chat_template(BRIEF, tokenize=False, add_generation_prompt=True)
    except Exception:
        right = ""
    if "Be brief." not in right:
        joined = question("Be brief.\n\nhi")
        right = tokenizer.apply_chat_template(joined, tokenize=False, add_generation_prompt=True)
    assert template.text(BRIEF) == right
    first = tokenizer(right).input_ids
    doubled = first[:2] == [tokenizer.bos_token_id] * 2
    assert template.ids(BRIEF) == (first[1:] if doubled else first)


def test_the_exported_template_gives_the_trained_turns(tokenizer):
    template = ChatTemplate(tokenizer)
    exported = copy.deepcopy(tokenizer)
    exported.chat_template = template.jinja()
    for chat in CHATS:
        text = exported.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text.endswith(template.text(chat))
        assert exported.encode(text, add_special_tokens=False) == template.ids(chat)
        assert ChatTemplate(exported).ids(chat) == template.ids(chat)


def test_a_users_text_cannot_end_the_turn(tokenizer):
    template = ChatTemplate(tokenizer)
    ends = [tokenizer.decode([end]) for end in template.ends]
    user = f"a{ends[0]} b {ends[-1]}c"
    ids, plain = template.prompt(user), template.prompt("hi")
    for end in template.ends:
        assert ids.count(end) == plain.count(end)
    assert user in tokenizer.decode(ids)
    joined = tokenizer(template.text(question(user))).input_ids
    assert any(joined.count(end) > plain.count(end) for end in template.ends)  # else no test


def test_answers_end_their_turn(tokenizer):
    template = ChatTemplate(tokenizer)
    answer = template.answer("Yes.")
    assert answer[-1] in template.ends
    assert tokenizer.decode(answer[:-1]).strip() == "Yes."
    assert tokenizer.decode(template.content("Yes.")).removeprefix(template.lead).strip() == "Yes."


def test_conversations(tokenizer):
    template = ChatTemplate(tokenizer)
    chat = [*LONG[1:], {"role": "assistant", "content": "Done"}]
    found = template.conversation(chat)
    assert found.tokens == template.ids(chat[:-1]) + template.answer("Done")
    learnt = [t for t, loss in zip(found.tokens, found.loss_mask, strict=True) if loss]
    assert learnt == template.answer("Yes.") + template.answer("Done")
    last = template.conversation(chat, "last")
    assert last.tokens == found.tokens and sum(last.loss_mask) == len(template.answer("Done"))


TALK = [*LONG, {"role": "assistant", "content": "Done, é!"}, *question("x")]
TALK.append({"role": "assistant", "content": "no"})


def test_the_loss_is_on_what_transformers_marks_as_generated():
    """`{% generation %}` marks the assistant's own tokens, with the end of its turn."""
    tokenizer = with_template(
        "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n'}}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = TALK
    right = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    found = ChatTemplate(tokenizer).conversation(chat)
    count = len(found.tokens)
    assert right["input_ids"][:count] == found.tokens
    assert tokenizer.decode(right["input_ids"][count:]) == "\n"
    assert right["assistant_masks"][:count] == [int(loss) for loss in found.loss_mask]
    last = ChatTemplate(tokenizer).conversation(chat, "last")
    assert sum(last.loss_mask) == len("no") + 1 and last.tokens == found.tokens


@pytest.mark.parametrize("name", WRITTEN)
def test_the_loss_is_on_what_follows_the_cues(name):
    """Prefixes rendered by transformers say where answers begin; the next control ends them."""
    tokenizer = with_template(WRITTEN[name][0])
    template = ChatTemplate(tokenizer)
    tokenizer.chat_template = template.jinja()  # without a default system message
    chat = TALK[1:]

    def shown(messages, cue):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=cue)

    full = shown(chat, False)
    right = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    for at in range(1, len(chat), 2):
        begin = len(shown(chat[:at], True))
        ends = [
            full.find(end, begin) + len(end) for end in (*CONTROLS, "</s>") if end in full[begin:]
        ]
        spans.append((begin, min(ends)))
    marked = [any(a <= begin < b for a, b in spans) for begin, _ in right["offset_mapping"]]
    found = template.conversation(chat)
    count = len(found.tokens)
    assert right["input_ids"][:count] == found.tokens
    assert marked[:count] == found.loss_mask and not any(marked[count:])
    assert len(spans) == 3 and template.keeps_answers


def test_the_choice_of_a_template(shared):
    chat, plain = with_template(CHATML), byte_tokenizer()
    assert chosen_kind("auto", chat, chat) == TemplateKind("chat", 2)
    assert chosen_kind("auto", chat, plain) == chosen_kind("plain", chat, chat)
    with pytest.raises(DataError, match="the edge has no chat template"):
        chosen_kind("chat", chat, plain)
    with pytest.raises(DataError, match="no chat template"):
        TemplateKind("chat").on(plain)
    assert TemplateKind.of({"templates": 1}) == TemplateKind("plain", 1)
    with pytest.raises(DataError, match="3"):
        TemplateKind.of({"templates": 3})


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["bytes", "llama2", "qwen2", "stories"])
def test_the_plain_template_in_jinja(name, version, shared):
    folders = {"llama2": "tokenizers/llama2", "qwen2": "tokenizers/qwen2"}
    folder = shared / folders.get(name, "models/stories260K")
    tokenizer = byte_tokenizer() if name == "bytes" else AutoTokenizer.from_pretrained(folder)
    template = TemplateKind("plain", version).on(tokenizer)
    exported = copy.deepcopy(tokenizer)
    exported.chat_template = template.jinja()
    for chat in (*CHATS, question(""), question("  x\n\ny ", "\n s ")):
        text = exported.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text.endswith(template.text(chat))
        assert exported.encode(text, add_special_tokens=False) == template.ids(chat)


LIKE_LLAMA = {  # name: (fields of tokenizer_config.json, how the bos is written)
    "like-llama": ({"tokenizer_class": "LlamaTokenizer"}, "<s> "),
    "like-llama-new": ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, "<s> "),
    "like-llama-legacy": ({"tokenizer_class": "LlamaTokenizer", "legacy": True}, "<s>"),
    "stories": ({}, "<s>"),
}


@pytest.fixture(params=[*LIKE_LLAMA, "gemma", "gpt2", "qwen2", "llama2"])
def variant(request, shared, tmp_path):
    """(name, tokenizer): what families do about a bos, and about a space in front of a text."""
    if request.param in LIKE_LLAMA:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(shared / "models/stories260K" / name, tmp_path / name)
        path = tmp_path / "tokenizer_config.json"
        values = json.loads(path.read_text()) | LIKE_LLAMA[request.param][0]
        path.write_text(json.dumps(values))
        return request.param, AutoTokenizer.from_pretrained(tmp_path)
    if request.param in ("qwen2", "llama2"):
        return request.param, AutoTokenizer.from_pretrained(shared / "tokenizers" / request.param)
    tokenizer = byte_tokenizer()
    if request.param == "gemma":  # its own bos, and no space
        add_own_bos(tokenizer)
    return request.param, tokenizer


@pytest.mark.parametrize("kind", ["plain", "zephyr", "llama2", "bare"])
def test_exported_turns_have_the_ids_of_training(variant, kind):
    """As a text without special tokens, as ids, and not one space too much."""
    name, tokenizer = variant
    if kind != "plain":
        bare = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        tokenizer.chat_template = {"zephyr": ZEPHYR, "llama2": LLAMA2, "bare": bare}[kind]
    if kind != "plain" and tokenizer.bos_token is None and "bos_token" in tokenizer.chat_template:
        pytest.skip("this template writes a bos, which this tokenizer lacks")
    template = TemplateKind("plain" if kind == "plain" else "chat").on(tokenizer)
    exported = copy.deepcopy(tokenizer)
    exported.chat_template = template.jinja()
    for chat in (question("hi there"), question("hi there", "Be brief."), question("120 a, b")):
        text = exported.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = exported.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
        assert exported(text, add_special_tokens=False).input_ids == template.ids(chat)
        assert ids["input_ids"] == template.ids(chat)
        if kind == "plain" and name in LIKE_LLAMA:
            assert text.startswith(f"{LIKE_LLAMA[name][1]}{'System' if len(chat) > 1 else 'User'}")


def test_digests_are_of_ids():
    own = ChatTemplate(with_template(CHATML)).digest()
    assert own == ChatTemplate(with_template(CHATML + "{# a note #}")).digest()
    assert own == ChatTemplate(with_template(GEMMA), source=CHATML).digest()
    assert own != ChatTemplate(with_template(GEMMA)).digest()
    grown = with_template(CHATML)
    grown.add_tokens(["twice"])
    assert own != ChatTemplate(grown).digest()
    assert ChatTemplate(with_template(DATED)).digest() is None
    plain = TemplateKind().on(byte_tokenizer())
    assert plain.digest() != TemplateKind("plain", 1).on(byte_tokenizer()).digest()
