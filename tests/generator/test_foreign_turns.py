"""Chat templates and tokenizers beside the adapters of other trainers."""

import json
import logging

import pytest
from tokenizers import Tokenizer

import lorage_jax as lg
from lorage_jax.data.templates import question
from lorage_jax.errors import WeightsError
from tests.data.test_chat_templates import CHATML, ZEPHYR, with_template
from tests.generator.test_adapter_turns import chat_folder, theirs
from tests.tiny import byte_tokenizer

ASKED = question("hi there")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "edge"
    chat_folder(folder, ZEPHYR)
    return lg.load_model(folder)


def renamed_eos():
    """A tokenizer in which the eos was renamed to ChatML's end of turn, as some trainers do."""
    values = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    values = json.loads(json.dumps(values).replace('"</s>"', '"<|im_end|>"'))
    made = type(byte_tokenizer())(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)),
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
    )
    made.chat_template = CHATML
    return made


def test_an_adapter_of_another_tokenizer_is_refused(edge, tmp_path):
    """Its marks of turns would be pieces of text in the edge's tokenizer."""
    plain = edge.replace(tokenizer=byte_tokenizer())
    folder = theirs(edge, tmp_path / "theirs")
    renamed_eos().save_pretrained(str(folder))
    with pytest.raises(WeightsError, match="trained with another tokenizer") as refused:
        lg.load_adapter(folder, plain)
    assert "copy of the edge's folder" in str(refused.value)


def test_an_adapter_of_the_same_tokenizer_brings_its_turns(edge, tmp_path):
    folder = theirs(edge, tmp_path / "theirs")
    with_template(CHATML).save_pretrained(str(folder))
    right = with_template(CHATML).apply_chat_template(ASKED, add_generation_prompt=True)
    assert lg.load_adapter(folder, edge).template.ids(ASKED) == right["input_ids"]


def test_named_templates_of_an_adapter(edge, tmp_path):
    """The default one counts, also where they are listed in tokenizer_config.json."""
    folder = theirs(edge, tmp_path / "theirs")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": named}))
    right = with_template(CHATML).apply_chat_template(ASKED, add_generation_prompt=True)
    assert lg.load_adapter(folder, edge).template.ids(ASKED) == right["input_ids"]
    path.write_text(json.dumps({"chat_template": named[:1]}))
    assert lg.load_adapter(folder, edge).template is edge.template


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ 1/0 }}", "hello"])
def test_an_adapter_whose_template_cannot_render(edge, tmp_path, caplog, template):
    """As with a base, a warning: the model answers in the turns that it has."""
    folder = theirs(edge, tmp_path / "theirs", template)
    with caplog.at_level(logging.WARNING):
        adapted = lg.load_adapter(folder, edge)
    assert adapted.template is edge.template and not adapted.answers
    assert "the chat template" in caplog.text and "the edge's own turns" in caplog.text


def test_a_tokenizer_of_an_adapter_that_cannot_be_read(edge, tmp_path, caplog):
    folder = theirs(edge, tmp_path / "theirs", CHATML)
    (folder / "tokenizer.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        adapted = lg.load_adapter(folder, edge)
    assert "written with the edge's" in caplog.text
    right = with_template(CHATML).apply_chat_template(ASKED, add_generation_prompt=True)
    assert adapted.template.ids(ASKED) == right["input_ids"]
