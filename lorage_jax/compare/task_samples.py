"""Samples of written tasks: a file's tasks as splits of prompts and questions, like the world's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from lorage_jax.config import TaskQuestions
from lorage_jax.data.records import Record
from lorage_jax.data.written_tasks import Instance, WrittenTask, divide, read_tasks
from lorage_jax.errors import DataError
from lorage_jax.evaluate.written import exact_match
from lorage_jax.world.samples import WorldSample

FAMILY = "written"
SOLVED = 8  # solved instances of a task that are kept for samples


@dataclass(frozen=True)
class TaskSample(WorldSample):
    """Questions of written tasks, those of a task in one group under one of its definitions.

    Attributes:
        accepted: all accepted answers, by (prompt, user text).
        solved: of every prompt, (user, target) pairs that are not asked.
    """

    accepted: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    solved: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    def is_right(self, record: Record, text: str) -> bool:
        """True for any accepted answer, by SQuAD's normalisation."""
        answers = self.accepted[record.system, record.user]
        return any(exact_match(text, one) == 1 for one in answers)


def draw_tasks(asked: TaskQuestions) -> list[TaskSample]:
    """The splits of a file of tasks, with a definition and questions drawn for every task.

    Raises DataError for a file that cannot be read, and if a split has nothing to ask.
    """
    tasks = read_tasks([asked.path])
    return [_sample(asked, split, divide(tasks, asked.held_out, split)) for split in asked.splits]


def _sample(asked: TaskQuestions, split: str, tasks: Sequence[WrittenTask]) -> TaskSample:
    groups, names, accepted, solved = [], [], {}, {}
    for task in _chosen(asked, split, tasks):
        rng = Random(f"{asked.seed}/{split}/{task.name}")
        prompt = rng.choice(task.definitions)
        if prompt in solved:  # two tasks in the same words
            continue
        distinct = _distinct(asked, task)
        drawn = rng.sample(distinct, min(asked.queries + SOLVED, len(distinct)))
        questions, rest = drawn[: asked.queries], drawn[asked.queries :]
        solved[prompt] = tuple((one.input, one.outputs[0]) for one in rest)
        accepted |= {(prompt, one.input): one.outputs for one in questions}
        groups.append([Record(prompt, one.input, one.outputs[0]) for one in questions])
        names.append(task.group or task.name)
    if len(set(names)) < 2:
        raise DataError(
            f"{asked.path}: fewer than two kinds of tasks have a definition and short questions in "
            f"the split {split}; the control by another task's prompt needs two."
        )
    return TaskSample(FAMILY, split, groups, tuple(names), accepted, solved)


def _chosen(asked: TaskQuestions, split: str, tasks: Sequence[WrittenTask]) -> list[WrittenTask]:
    ready = [
        task for task in tasks if task.definitions and len(_distinct(asked, task)) >= asked.queries
    ]
    rng = Random(f"{asked.seed}/{split}")
    return rng.sample(ready, min(asked.prompts, len(ready)))


def _distinct(asked: TaskQuestions, task: WrittenTask) -> list[Instance]:
    """The instances with short answers, one of each input."""
    short = (one for one in task.instances if max(map(len, one.outputs)) <= asked.longest_answer)
    return list({one.key: one for one in short}.values())


def fewest_samples(asked: TaskQuestions) -> int:
    """The solved samples of the task that has the fewest besides its questions, at most SOLVED."""
    return min(len(pairs) for sample in draw_tasks(asked) for pairs in sample.solved.values())


def first_prompts(sample: WorldSample, limit: int) -> WorldSample:
    """The first `limit` prompts of a sample."""
    return dataclasses.replace(sample, groups=sample.groups[:limit], tasks=sample.tasks[:limit])
