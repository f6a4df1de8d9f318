"""Samples of the built-in world: drawn prompts with their requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lorage_jax.data.records import Record
from lorage_jax.errors import ConfigError
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import words as world_words


@dataclass(frozen=True)
class WorldSample:
    """Records of one family and split, those of one prompt in one group.

    `tasks` names the task of every group, where the world drew it.
    """

    family: str
    split: str
    groups: list[list[Record]]
    tasks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.family}/{self.split}"

    @property
    def prompts(self) -> list[str]:
        """The system prompt of every group."""
        return [group[0].system for group in self.groups]

    @property
    def records(self) -> list[Record]:
        """The records of all groups, in order."""
        return [record for group in self.groups for record in group]

    def is_right(self, record: Record, text: str) -> bool:
        """True if the answer is right to the letter, white space around it apart."""
        return text.strip() == record.target.strip()

    def by_group(self, values: Sequence[Any]) -> list[list[Any]]:
        """One value per record, as one list per group."""
        rest = iter(values)
        return [[next(rest) for _ in group] for group in self.groups]


def draw_world(
    prompts: int, queries: int, seed: int, *, families: Sequence[str] = ("words", "tools")
) -> list[WorldSample]:
    """Every split of the families, `train` included: seen wordings, but prompts drawn anew.

    `prompts` different prompts per split, with `queries` different user texts each.
    """
    return [
        WorldSample(
            family,
            split,
            world_prompts.draw_groups(split, prompts, queries, seed, family),
            tuple(
                prompt.task for prompt in world_prompts.draw_prompts(split, prompts, seed, family)
            ),
        )
        for family in families
        for split in world_prompts.SPLITS
        if family in world_prompts.families(split)
    ]


def other_tasks(sample: WorldSample, seed: int) -> list[int]:
    """For each group, the index of a random other group that certainly has another task.

    In `words` no task may answer all requests of both groups: wordings differ, tasks count. In
    `tools` the dialect must be another, by which every call is another.
    """
    rng = Random(f"shuffled/{sample.name}/{seed}")
    count, could = len(sample.groups), [_could_be(sample, i) for i in range(len(sample.groups))]
    donors = []
    for i, group in enumerate(sample.groups):
        order = rng.sample(range(count), count)
        differ = [
            j
            for j in order
            if sample.groups[j][0].system != group[0].system and not could[i] & could[j]
        ]
        if not differ:
            raise ConfigError(
                f"the arm shuffled needs prompts of other tasks, but of the {count} prompts of "
                f"{sample.name} none is surely another task than {group[0].system[:60]!r}. Draw "
                "more prompts, or leave the arm out."
            )
        donors.append(differ[0])
    return donors


def _could_be(sample: WorldSample, i: int) -> set[str]:
    """The tasks by which all targets of the group are right."""
    if sample.family != "words":
        return {sample.tasks[i]} if sample.tasks else set()
    return {
        task.name
        for split in ("train", "composition")
        for task in world_words.tasks(split)
        if all(task.answer(record.user) == record.target for record in sample.groups[i])
    }
