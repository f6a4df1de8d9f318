"""Adapters carry the turns they were trained in, as merged folders do."""

import copy
import dataclasses
import json
import logging
import shutil

import peft
import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import lorage_jax as lg
from lorage_jax.data.templates import TemplateKind, question
from tests.commands.world import lorage
from tests.data.test_chat_templates import CHATML, ZEPHYR, with_template
from tests.tiny import make_generator, make_tiny

CHATS = (
    question("hi there"),
    question("hi", "Be brief."),
    [*question("hi"), {"role": "assistant", "content": "Yes."}, *question("more")],
)
TEXTS = ("User: hi", "a  b\n", "<|im_start|>user\nhi<|im_end|>", "</s> <s>é")
VOCAB = 320


def chat_folder(folder, template, **sizes):
    """A model whose tokenizer knows the marks of ChatML and has this chat template."""
    make_tiny("llama", folder, tokenizer=False, vocab_size=VOCAB, num_hidden_layers=2, **sizes)
    tokenizer = with_template(template)
    assert len(tokenizer) <= VOCAB
    tokenizer.save_pretrained(str(folder))


@pytest.fixture(scope="module", params=["plain", "chat", "stories"])
def exported(request, tmp_path_factory, cloud_dir):
    """(kind, edge folder, generator, card, root with adapter/ and merged/)."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "stories":  # puts a bos in front, and a space in front of a text
        shared = request.getfixturevalue("shared")
        shutil.copytree(shared / "models" / "stories260K", root / "edge")
    else:
        chat_folder(root / "edge", CHATML)
    kind, cloud = "plain", cloud_dir
    if request.param == "chat":
        kind, cloud = "chat", root / "cloud"
        chat_folder(cloud, CHATML)
    made = dataclasses.replace(make_generator(cloud, root / "edge"), template=TemplateKind(kind))
    edge, card = lg.load_model(root / "edge"), lg.specialize(made, "Say it twice.")
    lg.export_adapter(made.pool, card, edge, root / "adapter")
    lg.export_merged(lg.merge(edge, made.pool, card), root / "merged")
    return kind, edge, made, card, root


def test_the_tokenizer_is_that_of_the_merged_folder(exported):
    *_, root = exported
    own, right = (AutoTokenizer.from_pretrained(root / name) for name in ("adapter", "merged"))
    for text in TEXTS:
        assert own(text).input_ids == right(text).input_ids
        assert own.decode(own(text).input_ids) == right.decode(right(text).input_ids)
    for chat in CHATS:
        for how in ({"tokenize": False}, {"tokenize": True}, {"tokenize": False, "cue": False}):
            options = {"tokenize": how["tokenize"], "add_generation_prompt": how.get("cue", True)}
            assert own.apply_chat_template(chat, **options) == right.apply_chat_template(
                chat, **options
            )
    assert (own.bos_token_id, own.eos_token_id) == (right.bos_token_id, right.eos_token_id)
    assert str(root) not in "".join(
        path.read_text("utf-8") for path in (root / "adapter").glob("*.json")
    )


def test_an_adapted_model_answers_as_the_merged_one(exported):
    kind, edge, made, card, root = exported
    adapted = lg.load_adapter(root / "adapter", edge)
    merged, loaded = lg.merge(edge, made.pool, card), lg.load_model(root / "merged")
    assert adapted.answers and adapted.template.name == kind
    for chat in CHATS:
        ids = merged.template.ids(chat)
        assert adapted.template.ids(chat) == loaded.template.ids(chat) == ids
        right = AutoTokenizer.from_pretrained(root / "adapter").apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True
        )
        assert right["input_ids"] == ids
    lg.export_merged(adapted, root / "adapted", overwrite=True)
    found, right = (AutoTokenizer.from_pretrained(root / name) for name in ("adapted", "merged"))
    assert found.get_chat_template() == right.get_chat_template()
    said = [lg.chat(model, "hi there", max_new_tokens=5) for model in (adapted, merged, loaded)]
    assert said[0] == said[1] == said[2]


def test_the_ends_of_the_turns_are_named_in_the_merged_folder(exported, tmp_path):
    """A base without generation_config.json keeps the settings that its config.json names."""
    _, edge, made, card, root = exported
    merged = lg.merge(edge, made.pool, card)
    ends = (*edge.config.eos_ids, *merged.template.ends)
    assert GenerationConfig.from_pretrained(root / "merged").eos_token_id == named(ends)
    shutil.copytree(root / "edge", tmp_path / "bare")
    (tmp_path / "bare" / "generation_config.json").unlink(missing_ok=True)
    values = json.loads((tmp_path / "bare" / "config.json").read_text())
    values |= {"eos_token_id": 2, "repetition_penalty": 1.5}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(values))
    lg.export_merged(merged, tmp_path / "out", base=tmp_path / "bare")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert theirs.eos_token_id == named((2, *merged.template.ends))
    assert theirs.repetition_penalty == 1.5
    written = (tmp_path / "out" / "generation_config.json").is_file()
    assert written == (set(merged.template.ends) > {2})


def named(ends):
    found = list(dict.fromkeys(ends))
    return found if len(found) > 1 else found[0]


def test_the_command_line_answers_in_the_turns_of_the_adapter(exported, tmp_path):
    root = exported[-1]
    given = ("--input", "hi there", "--max-new-tokens", 4, "--json")
    base = ("--model", root / "edge", "--adapter", root / "adapter")
    assert lorage("generate", *base, *given, tmp_path / "adapter.json") == 0
    assert lorage("generate", "--model", root / "merged", *given, tmp_path / "merged.json") == 0
    found, right = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("adapter", "merged")
    )
    assert (found["input"], found["output"]) == (right["input"], right["output"])
    assert found["input"] != "hi there"


def test_named_templates_of_the_base_stay_out_of_the_adapter(exported, tmp_path):
    _, edge, made, card, _ = exported
    tokenizer = copy.deepcopy(edge.tokenizer)
    own = edge.tokenizer.chat_template or ZEPHYR
    tokenizer.chat_template = {"default": own, "tool_use": "{{ tools }}"}
    lg.export_adapter(made.pool, card, edge.replace(tokenizer=tokenizer), tmp_path / "adapter")
    own = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert isinstance(own.chat_template, str)


def theirs(edge, folder, template=None):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)
    base = transformers.AutoModelForCausalLM.from_pretrained(str(edge.source))
    peft.get_peft_model(base, config).save_pretrained(str(folder))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_chat_template_in_anybodys_adapter(exported, tmp_path, caplog):
    _, edge, _, _, root = exported
    none = lg.load_adapter(theirs(edge, tmp_path / "none"), edge)
    assert none.template is edge.template and not none.answers
    if root.name.startswith("stories"):
        return
    folder = theirs(edge, tmp_path / "theirs", ZEPHYR)
    right = with_template(ZEPHYR).apply_chat_template(CHATS[0], add_generation_prompt=True)
    adapted = lg.load_adapter(folder, edge)
    assert adapted.template.ids(CHATS[0]) == right["input_ids"]
    lg.export_merged(adapted, tmp_path / "merged")
    own = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert own.get_chat_template() == ZEPHYR
    assert lg.load_model(tmp_path / "merged").template.ids(CHATS[0]) == right["input_ids"]
    assert edge.tokenizer.chat_template == CHATML  # untouched
    with caplog.at_level(logging.WARNING):
        both = lg.load_adapter([root / "adapter", folder], edge)
    assert "trained in different turns" in caplog.text
    assert both.template is edge.template


def test_an_adapter_without_a_tokenizer_beside_it(exported, tmp_path):
    """As earlier versions wrote it."""
    _, edge, *_, root = exported
    shutil.copytree(root / "adapter", tmp_path / "old")
    for path in (tmp_path / "old").iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            path.unlink()
    old, new = (lg.load_adapter(one, edge) for one in (tmp_path / "old", root / "adapter"))
    assert old.template.ids(CHATS[0]) == new.template.ids(CHATS[0])
