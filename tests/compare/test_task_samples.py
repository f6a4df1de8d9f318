"""Samples of written tasks: what is asked, what counts as right, and what is kept apart."""

import dataclasses
import json

import pytest

from lorage_jax.compare.measure import combined
from lorage_jax.compare.parts import all_parts
from lorage_jax.compare.task_samples import draw_tasks, first_prompts
from lorage_jax.config import (
    CompareConfig,
    DataConfig,
    ExperimentConfig,
    HeldOut,
    Source,
    TaskQuestions,
)
from lorage_jax.data.records import Record
from lorage_jax.data.written_tasks import is_held_out
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.world.samples import other_tasks

HELD = HeldOut(tasks=0.4, paraphrases=0.4, instances=0.4, seed=2, by="group")


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "tasks.jsonl"
    rows = [
        {
            "name": f"task{i}",
            "group": f"group{i // 2}",
            "definition": [f"wording {k} of {i}" for k in range(6)],
            "instances": [
                {"input": f"q{i} {n}", "output": [f"The answer {n}.", f"also {n}"]}
                for n in range(60)
            ]
            + [{"input": f"long {i} {n}", "output": "x" * 99} for n in range(60)],
        }
        for i in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskQuestions(str(path), HELD, prompts=9, queries=5)


def test_every_split_asks_what_training_did_not_see(asked):
    samples = {one.split: one for one in draw_tasks(asked)}
    assert list(samples) == ["instances", "paraphrases", "tasks"]
    for split, sample in samples.items():
        assert 2 <= len(sample.groups) <= asked.prompts
        for group, task in zip(sample.groups, sample.tasks, strict=True):
            assert len(group) == asked.queries and {r.system for r in group} == {group[0].system}
            held = is_held_out("definition", group[0].system, HELD.paraphrases, HELD.seed)
            assert is_held_out("task", task, HELD.tasks, HELD.seed) == (split == "tasks")
            if split != "tasks":
                assert held == (split == "paraphrases")
                for record in group:
                    assert is_held_out("instance", record.user, HELD.instances, HELD.seed)
            assert all(len(record.target) < asked.longest_answer for record in group)
            solved = {user for user, _ in sample.solved[group[0].system]}
            assert solved and not solved & {record.user for record in group}


def test_any_accepted_answer_is_right(asked):
    sample = draw_tasks(asked)[0]
    record = sample.records[0]
    number = record.user.split()[-1]
    for text, right in {
        record.target: True,
        f" the ANSWER {number}\n": True,
        f"also {number}": True,
        f"also {number} more": False,
        "": False,
    }.items():
        assert sample.is_right(record, text) is right, text
    with pytest.raises(KeyError):
        sample.is_right(Record("another prompt", record.user, ""), "")


def test_draws_repeat_and_the_control_is_of_another_group(asked):
    first, again = (draw_tasks(asked)[1] for _ in range(2))
    assert first == again
    other = draw_tasks(dataclasses.replace(asked, seed=3))[1]
    assert other.records != first.records
    for i, donor in enumerate(other_tasks(first, 0)):
        assert first.tasks[donor] != first.tasks[i]
    assert first_prompts(first, 2).prompts == first.prompts[:2]


def test_a_split_without_questions_is_refused(asked):
    with pytest.raises(DataError, match="fewer than two kinds of tasks"):
        draw_tasks(dataclasses.replace(asked, longest_answer=2))


def file_of(path, tasks):
    """Tasks by name, each with its user texts."""
    rows = [
        {
            "name": name,
            "definition": [f"wording of {name}"],
            "instances": [{"input": text, "output": "yes"} for text in texts],
        }
        for name, texts in tasks.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    nothing_held = HeldOut(tasks=0.0, paraphrases=0.0, instances=0.0)
    return TaskQuestions(str(path), nothing_held, ("train",), queries=8)


def comparison(questions, **rows):
    data = DataConfig((Source("synthetic", "synthetic"),))
    base = ExperimentConfig(cloud="a", edge="b", out="out", data=data, steps=100)
    return CompareConfig(base, rows, questions)


def test_a_task_that_repeats_its_questions_does_not_count_them_twice(tmp_path):
    enough = {name: [f"{name} {n}" for n in range(9)] for name in ("a", "b")}
    asked = file_of(tmp_path / "f.jsonl", enough | {"same": ["one", "ONE "] * 20})
    (sample,) = draw_tasks(asked)
    assert set(sample.tasks) == {"a", "b"}
    assert all(len(group) == 8 for group in sample.groups)


def test_more_samples_than_are_kept_are_refused_before_training(asked):
    config = comparison(asked, five={"method": "in_context", "samples": 5})
    assert all_parts(config, ["five"], 1)[1].samples == 5
    config = comparison(asked, many={"method": "in_context", "samples": 16})
    with pytest.raises(ConfigError, match=r"many has 16 samples; .* at most 8"):
        all_parts(config, ["many"], 1)


@pytest.mark.parametrize("count, note", [(12, "; 3 solved samples"), (9, "(fewer where")])
def test_a_row_says_that_tasks_have_fewer_samples_than_it_asks_for(tmp_path, count, note):
    tasks = {"a": range(20), "b": range(count)}
    asked = file_of(tmp_path / "f.jsonl", {k: [f"{k} {n}" for n in v] for k, v in tasks.items()})
    split = {"exact_match": 0.5, "stderr": 0.1, "by_prompt": [0.5, 0.5]}
    figures = {
        "splits": {"written/train": split | {"edge_tokens": 1, "context_tokens": 1}},
        "trained_parameters": 0,
        "merged": None,
        "unseen_tasks": True,
        "frozen": [],
    }
    config = comparison(asked, row={"method": "in_context", "samples": 3})
    row = combined(config, {"row": [figures], "bare": [figures]}, set())["methods"]["row"]
    assert note in row["what"] and row["fewest_samples"] == min(3, count - 8)
    assert ("at least 1)" in row["what"]) == (count == 9)
