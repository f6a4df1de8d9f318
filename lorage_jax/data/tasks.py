"""The task type: one row of `task_table.TASKS` holds everything known about a task.

Training draws system prompts from the descriptions and examples from the rows. Evaluation reads
local files in lm-eval's layout, pairs each task with a control, and reports the paper's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from lorage_jax.data.records import Row
from lorage_jax.data.task_rows import Example
from lorage_jax.data.templates import few_shot_prompt


@dataclass(frozen=True)
class Task:
    """A task to train on and to score.

    Attributes:
        name: lm-eval's name of the task, and of its folder of local files.
        descriptions: paraphrases of one system prompt; evaluation uses the first.
        to_example: (row, where) to an Example; raises DataError naming `where`.
        to_hub: (row, where) to the layout that lm-eval's definition reads.
        hub_field: a field that only rows in that layout have; "" converts every row.
        folder: where lm-eval's definition is: a folder below its `tasks`, or an absolute path.
        subset: the Hub's configuration.
        shared_kind: name shared by tasks whose prompts say nearly the same, so that one is not
            the shuffled control of another.
        free_text: the answer is generated; otherwise every choice is scored.
        column: position in Table 2 of the paper, from 1; 0 for a task that it lacks.
        short: that column's name.
        seen: the task's train split is among the paper's training data.
    """

    name: str
    descriptions: tuple[str, ...]
    to_example: Callable[[Row, str], Example]
    to_hub: Callable[[Row, str], Row]
    hub_field: str
    folder: str
    subset: str | None = None
    shared_kind: str | None = None
    free_text: bool = False
    column: int = 0
    short: str = ""
    seen: bool = False

    @property
    def kind(self) -> str:
        """The kind of its questions: its own name, unless several tasks share one."""
        return self.shared_kind or self.name


def task_prompt(
    task: Task, bank: Sequence[Example], asked: Sequence[Example], shots: int, rng: Random
) -> str:
    """Draw a few-shot system prompt: a description and `shots` random samples out of `bank`.

    No sample has the user text of an item in `asked`. `bank` holds every user text once (see
    `sample_bank`); where it is too small, all that is left of it is used. Paper: "multi-shot
    samples drawn at random go into the system prompt".
    """
    taken = {item.user for item in asked}
    drawn = rng.sample(bank, min(len(bank), shots + len(taken)))
    samples = [(item.user, item.target) for item in drawn if item.user not in taken]
    return few_shot_prompt(rng.choice(task.descriptions), samples[:shots])


def sample_bank(items: Sequence[Example]) -> list[Example]:
    """Return `items` with every user text once."""
    return list({item.user: item for item in items}.values())
