"""Folders whose chat template cannot be used: they load, and say so."""

import json
import logging
import shutil

import pytest

import lorage_jax as lg
from lorage_jax import nano

REFUSES = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REFUSES, "no system message"),
        ("{% for message in messages %}", "chat template"),
        ("hello", "leaves out the user's text"),
    ],
    ids=["refuses", "broken", "no text"],
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
