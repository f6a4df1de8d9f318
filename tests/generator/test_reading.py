"""System prompts as token ids: what a model cannot read is one clear error."""

import dataclasses

import pytest

from lorage_jax.data.templates import NEWEST
from lorage_jax.errors import DataError
from lorage_jax.generator.reading import prompt_ids
from lorage_jax.hf.load import load_model


@pytest.fixture(scope="module")
def reader(pair):
    return load_model(pair[0])


def test_the_ids_are_those_of_the_template(reader):
    turns, prompts = NEWEST.on(reader.tokenizer), ["Shout.", "Say it twice."]
    assert prompt_ids(reader, turns, prompts, 4) == [turns.read(one) for one in prompts]


@pytest.mark.parametrize(
    ("prompt", "slots", "vocabulary", "says"),
    [
        (" \n", 0, None, "the system prompt is empty"),
        ("Shout.", 10_000, None, "tokens; the model that reads it takes at most -.*Shorten"),
        ("Shout.", 0, 10, "gives id .*, but the model's vocabulary is 0 to 9"),
    ],
)
def test_what_cannot_be_read(reader, prompt, slots, vocabulary, says):
    size = vocabulary or reader.config.vocab_size
    reader = reader.replace(config=dataclasses.replace(reader.config, vocab_size=size))
    with pytest.raises(DataError, match=says):
        prompt_ids(reader, NEWEST.on(reader.tokenizer), ["Shout.", prompt], slots)
