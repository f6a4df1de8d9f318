"""Settings of generation in a model's folder: obeyed as by transformers, or named in a warning."""

import json
import logging
import shutil
from typing import Any

import pytest
import torch
import transformers

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.evaluate.answers import Generation
from lorage_jax.hf.load import load_model
from lorage_jax.infer import defaults
from lorage_jax.infer.chat import chat
from lorage_jax.infer.defaults import default_penalty, generation_defaults
from lorage_jax.infer.generate import generate
from lorage_jax.infer.sample import Sampling
from lorage_jax.methods.method import Placement

TEXT = "Once upon a time, there was a little girl named"
TOKENS = 24


@pytest.fixture(scope="module")
def stories(shared):
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def greedy(stories):
    """The ids after TEXT without any settings."""
    return transformers_ids(stories)


@pytest.fixture
def with_settings(stories, tmp_path):
    """with_settings(settings, file) -> a folder that has them."""

    def make(settings, file=defaults.FILE):
        folder = tmp_path / "model"
        folder.mkdir()
        for path in stories.iterdir():
            shutil.copyfile(path, folder / path.name)
        if file == defaults.CONFIG:
            (folder / defaults.FILE).unlink()
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(values | settings))
        return folder

    return make


def transformers_ids(folder):
    """The new ids of transformers' `generate`, called with a number of tokens and no sampling."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    found = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    new = found[0, ids.shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    return new[:-1] if new[-1] in (ends if isinstance(ends, list) else [ends]) else new


SETTINGS = [
    ({"repetition_penalty": 1.3}, True),
    ({"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.6, "top_k": 5}, True),
    ({"eos_token_id": [2, 261]}, True),
    ({"top_p": 0.1, "max_new_tokens": 3, "brand_new": 7}, True),
    ({"no_repeat_ngram_size": 1}, False),
    ({"suppress_tokens": [261, 286, 410]}, False),
    ({"bad_words_ids": [[261]]}, False),
    ({"num_beams": 3}, False),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("settings", "obeyed", "file"),
    [
        *((*one, defaults.FILE) for one in SETTINGS),
        (*SETTINGS[0], defaults.CONFIG),
        *(pytest.param(*one, defaults.CONFIG, marks=pytest.mark.slow) for one in SETTINGS[1:]),
    ],
)
def test_as_transformers_or_a_warning(with_settings, greedy, caplog, settings, obeyed, file):
    folder = with_settings(settings, file)
    model, right = load_model(folder), transformers_ids(folder)
    defaults._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        said = generate(model, TEXT, max_new_tokens=TOKENS)
        chat(model, TEXT, max_new_tokens=1)
    changing = [name for name in settings if name not in defaults.GREEDY]
    if obeyed:
        whole = model.tokenizer(TEXT).input_ids
        text = model.tokenizer.decode([*whole, *right], skip_special_tokens=True)
        assert f"{TEXT}{said}" == text
        assert "lorage_jax does not" not in caplog.text
    else:
        assert f"asks for {changing[0]}={settings[changing[0]]}" in caplog.text
        assert caplog.text.count("lorage_jax does not") == 1
    if set(settings) & {"repetition_penalty", "no_repeat_ngram_size", "suppress_tokens"}:
        assert right != greedy  # else the case shows nothing


def test_unknown_fields_and_damaged_files(with_settings):
    model = load_model(folder := with_settings({"brand_new": 7, "temperature": 0.3}))
    assert generation_defaults(model)["temperature"] == 0.3
    assert "brand_new" not in generation_defaults(model)
    (folder / defaults.FILE).write_text('{"repetition_penalty": "much"}')
    with pytest.raises(WeightsError, match=r"config\.json: repetition_penalty is 'much'"):
        default_penalty(model)
    (folder / defaults.FILE).unlink()
    config = json.loads((folder / defaults.CONFIG).read_text())
    (folder / defaults.CONFIG).write_text(json.dumps(config | {"repetition_penalty": -1}))
    with pytest.raises(WeightsError, match=r"model/config\.json: repetition_penalty is -1"):
        default_penalty(model)


def test_answers_of_the_arms_obey_the_penalty(with_settings):
    """GPT4Tools and written tasks: with the penalty of the edge's folder, and a key of its own."""
    model = load_model(folder := with_settings({"repetition_penalty": 1.4}))
    arms = Generation(TOKENS)
    found = arms("asking", Placement(model), [TEXT]).answers
    right = generate(model, TEXT, max_new_tokens=TOKENS)
    plain = generate(model, TEXT, max_new_tokens=TOKENS, sampling=Sampling())
    assert found == [right] and right != plain
    (folder / defaults.FILE).write_text("{}")
    assert arms("asking", Placement(model), [TEXT]).answers == [plain]  # not the journal's
    (folder / defaults.FILE).write_text('{"no_repeat_ngram_size": 2}')
    with pytest.raises(ConfigError, match=r"ngram_size=2 of the model's generation_config\.json"):
        arms("asking", Placement(model), [TEXT])
