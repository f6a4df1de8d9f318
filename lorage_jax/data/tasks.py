"""The type of a task; `task_table.TASKS` has one row per task, with everything known about it.

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
        to_example: converts (row, where) to an Example; raises DataError naming `where`.
        to_hub: converts (row, where) to the layout that lm-eval's definition reads.
        hub_field: a field that only rows in that layout have; "" converts every row.
        folder: folder of lm-eval's definition, below its `tasks` or as an absolute path.
        subset: the Hub's configuration.
        shared_kind: name shared by tasks whose prompts are so similar that one cannot serve as the
            shuffled control of another.
        free_text: True if the answer is generated; otherwise every choice is scored.
        column: position in Table 2 of the paper, from 1; 0 if it is not in the table.
        short: that column's name.
        seen: True if the task's train split is among the paper's training data.
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
        """`shared_kind`, or else the task's own name."""
        return self.shared_kind or self.name


def task_prompt(
    task: Task, bank: Sequence[Example], asked: Sequence[Example], shots: int, rng: Random
) -> str:
    """Draws a few-shot system prompt: a description and `shots` random samples from `bank`.

    No sample has the user text of an item in `asked`. `bank` holds every user text once (see
    `sample_bank`); if it is too small, all remaining samples are used. As in the paper, multi-shot
    samples are drawn at random for the system prompt.
    """
    taken = {item.user for item in asked}
    drawn = rng.sample(bank, min(len(bank), shots + len(taken)))
    samples = [(item.user, item.target) for item in drawn if item.user not in taken]
    return few_shot_prompt(rng.choice(task.descriptions), samples[:shots])


def sample_bank(items: Sequence[Example]) -> list[Example]:
    """Returns `items` with every user text once: the last item, at the place of the first."""
    return list({item.user: item for item in items}.values())
