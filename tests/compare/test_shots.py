"""Solved samples after prompts: right, new, and the same ones for every method."""

import pytest

from lorage_jax.compare.shots import WithSamples, solved_samples, texts_with_samples
from lorage_jax.errors import DataError
from lorage_jax.methods.in_context import InContext
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world.samples import draw_world


@pytest.mark.parametrize("family", ["words", "tools"])
def test_samples_are_solved_requests_that_are_not_asked(family):
    for sample in draw_world(3, 4, seed=3, families=(family,)):
        drawn = world_prompts.draw_prompts(sample.split, 3, 3, family)
        texts = {n: texts_with_samples(solved_samples(sample, drawn, n)) for n in (0, 1, 3)}
        for prompt, group in zip(drawn, sample.groups, strict=True):
            none, one, three = (texts[n][prompt.system] for n in (0, 1, 3))
            assert none == prompt.system.strip()
            assert three.startswith(one) and one.startswith(none) and len(three) > len(one)
            shown = three[len(none) :]
            assert not any(record.user.strip() in shown for record in group)
            if prompt.answer is None:  # texts of tools hold whole conversations
                continue
            turns = shown.strip().removeprefix("User: ").split("\n\nUser: ")
            pairs = [turn.split("\nAssistant: ") for turn in turns]
            assert [prompt.answer(user) for user, _ in pairs] == [target for _, target in pairs]
            assert len(dict(pairs)) == 3


def test_what_is_asked_is_not_shown():
    sample = draw_world(1, 2, 1)[0]
    asked = sample.groups[0][1]
    drawn = iter([(asked.user, asked.target), ("new", "right"), ("new", "right"), ("last", "too")])
    prompt = world_prompts.Prompt(asked.system, "", "words", lambda rng: next(drawn))
    (text,) = texts_with_samples(solved_samples(sample, [prompt], 2)).values()
    shown = "User: new\nAssistant: right\n\nUser: last\nAssistant: too"
    assert text == f"{asked.system}\n\n{shown}"


def test_a_method_reads_them_in_the_place_of_its_prompts():
    method = WithSamples(InContext(), {"a": "a and more"})
    assert method.prepare(["a"])[0].context == "a and more"


def test_more_samples_than_there_are_user_texts_are_refused():
    (sample, *_), (prompt,) = (
        draw_world(1, 1, 1),
        world_prompts.draw_prompts("train", 1, 1, "words"),
    )
    few = type(prompt)(prompt.system, prompt.task, "words", lambda rng: ("x", "y"))
    with pytest.raises(DataError, match="2 samples are too many for the task"):
        solved_samples(sample, [few], 2)
