"""The cached prompt: the answers of `in_context`, for the work of the bare question."""

import numpy as np
import pytest

from lorage_jax.data.templates import question
from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.answers import Generation, turns
from lorage_jax.evaluate.arms import Arm, Unit, ask
from lorage_jax.hf.load import load_model
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.in_context import InContext
from lorage_jax.methods.in_context_cached import InContextCached, shared_ids

PROMPTS = ["Say every word twice.", "Reverse the words, and shout."]
USERS = ["a b", "city king", "12", "ü"]
OWNERS = [0, 1, 1, 0]


@pytest.fixture(scope="module")
def edge(tiny):
    return load_model(tiny("gemma2")[0])


def test_answers_are_those_of_in_context(edge):
    """Two prompts in one batch, through the engine; the edge reads only the question."""
    arms = [Arm("in_context", InContext()), Arm("in_context_cached", InContextCached.load(edge))]
    unit = Unit("words", PROMPTS, USERS, OWNERS)

    def answer(arm, unit, placement, rows):
        texts = [turns(user, row) for user, row in zip(unit.questions, rows, strict=True)]
        return Generation(6)(arm.name, placement, texts)

    found = {name: one["words"] for name, one in ask(arms, edge, [unit], answer).items()}
    whole, cached = found["in_context"], found["in_context_cached"]
    assert cached.answered.answers == whole.answered.answers
    bare = np.mean([len(edge.template.ids(question(user))) for user in USERS])
    assert cached.answered.edge_tokens <= bare < whole.answered.edge_tokens
    slots = [fact["prefix_slots"] for fact in cached.facts]
    read = whole.answered.edge_tokens - cached.answered.edge_tokens
    assert read == cached.answered.front_slots == np.mean([slots[owner] for owner in OWNERS])
    assert whole.answered.front_slots == 0


def test_the_shared_tokens_begin_every_question(edge):
    for prompt in PROMPTS:
        ids = shared_ids(edge.template, prompt)
        for user in (*USERS, "The", " x"):
            assert edge.template.ids(question(user, prompt))[: len(ids)] == ids
        rest = edge.template.ids(question("a", prompt))[len(ids) :]
        assert edge.tokenizer.decode(rest).startswith("a")


def test_a_row_without_a_prefix_is_an_error(edge):
    method = InContextCached.load(edge)
    with pytest.raises(ConfigError, match="a row has no prefix"):
        method.place(edge, Bare().prepare(PROMPTS))
    with pytest.raises(ConfigError, match="the model's context of 256"):
        method.prepare(["word " * 100])
