"""Answers in a journal belong to the tokenizer and the ends that they were written with."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import decoders

from lorage_jax.evaluate.answers import Generation
from lorage_jax.files.journal import Journal
from lorage_jax.hf.load import load_model
from lorage_jax.methods.method import Placement

TEXT = "Once upon a time, there was a little girl named"


@pytest.fixture(scope="module")
def model(shared):
    return load_model(shared / "models" / "stories260K")


def test_answers_of_another_tokenizer_are_not_taken(model):
    """It reads the same tokens and spells them otherwise."""
    other = copy.deepcopy(model.tokenizer)
    spelled = [other.backend_tokenizer.decoder, decoders.Replace("i", "I")]
    other.backend_tokenizer.decoder = decoders.Sequence(spelled)
    arms = Generation(12, journal=Journal())
    first = arms("asking", Placement(model), [TEXT]).answers
    again = arms("asking", Placement(model.replace(tokenizer=other)), [TEXT]).answers
    assert again == [first[0].replace("i", "I")] != first
    assert len(arms.journal) == 2


def test_answers_of_other_turns_are_not_taken(model):
    """In the trained turns, which the template's ends close."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")
    from lorage_jax.evaluate.harness import LorageLM
    from tests.evaluate.test_harness import instances

    def turns(*ends: int) -> Any:
        return SimpleNamespace(tokens=lambda text: model.tokenizer(text).input_ids, ends=ends)

    asked = instances("generate_until", (TEXT, {"until": [], "max_gen_toks": 8}))
    ours = LorageLM(model.replace(template=turns()), encoding="trained")
    [whole] = ours.generate_until(asked)
    ids = model.tokenizer(f"{TEXT}{whole}").input_ids[len(model.tokenizer(TEXT).input_ids) :]
    ours.reset(cast(Any, model.replace(template=turns(ids[2]))))
    [cut] = ours.generate_until(asked)
    assert whole.startswith(cut) and len(cut) < len(whole)
    ours.reset(model.replace(template=turns(*model.config.eos_ids)))  # nothing new ends
    assert ours.generate_until(asked) == [whole] and len(ours.journal) == 2
