"""Everyday tasks: prompts, questions and answers."""

from random import Random

import pytest

from lorage_jax.world.everyday import (
    TASKS,
    draw_everyday,
    find_everyday,
    in_words,
    last_of,
    middle_of,
)


def test_answers_are_computed():
    assert [in_words(n) for n in ("7", "13", "20", "42", "99")] == [
        "seven",
        "thirteen",
        "twenty",
        "forty-two",
        "ninety-nine",
    ]
    assert (last_of("a, b, c, d, e"), middle_of("a, b, c, d, e")) == ("e", "c")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_question_has_its_answer(task):
    prompt = task.prompt(Random(0))
    drawn = dict(prompt.draw(Random(seed)) for seed in range(200))
    assert len(drawn) >= 24, "a quickstart asks 24 different questions"
    for user, target in drawn.items():
        assert target and prompt.answer(user) == target != user


def test_a_wording_is_found_again_and_others_are_not():
    for task in TASKS:
        for wording in task.wordings:
            found = find_everyday(f" {wording}\n")
            assert (found.system, found.task) == (wording, task.name)
    assert find_everyday("Be kind to animals.") is None


def test_the_control_is_another_task():
    tasks = {draw_everyday(Random(seed), besides="plural").task for seed in range(60)}
    assert tasks == {task.name for task in TASKS} - {"plural"}
