"""Folders whose chat template cannot be used: they load, and say so."""

import json
import logging
import shutil

import pytest
from transformers import AutoTokenizer

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.data.templates import is_changed

REFUSES = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REFUSES, "no system message"),
        ("{% for message in messages %}", "chat template"),
        ("hello", "leaves out the user's text"),
        ([{"name": "tool_use", "template": "{{ messages[0]['content'] }}"}], "for tool_use, and"),
        ("{{ tools | length }}", "has no len()"),
        ("{{ 1/0 }}", "division by zero"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ],
    ids=["refuses", "broken", "no text", "no default", "no tools", "arithmetic", "recursion"],
)
def test_a_model_with_an_unusable_chat_template_loads(tmp_path, caplog, template, reason):
    folder = tmp_path / "edge"
    shutil.copytree(nano.EDGE, folder)
    (folder / "lorage.json").unlink()
    values = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    values["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(values), "utf-8")
    with caplog.at_level(logging.WARNING):
        model = lg.load_model(folder)
    assert reason in caplog.text and "plain turns" in caplog.text
    assert model.template.text([{"role": "user", "content": "a b"}]) == "User: a b\nAssistant:"


def test_a_template_without_a_default_is_a_changed_one():
    """Of a folder whose recorded chat template was replaced by named ones."""
    tokenizer = AutoTokenizer.from_pretrained(str(nano.EDGE))
    tokenizer.chat_template = {"tool_use": "{{ messages[0]['content'] }}"}
    assert is_changed("{{ messages }}", tokenizer)
    tokenizer.chat_template["default"] = "{{ messages }}"
    assert not is_changed("{{ messages }}", tokenizer)
