"""Solved samples after the prompts of the built-in tasks, for any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from lorage_jax.data.records import Record
from lorage_jax.data.templates import few_shot_prompt
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.methods.method import Conditioning, Method, Placement, Solved
from lorage_jax.models.model import Model
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world.prompts import TRIES, Prompt
from lorage_jax.world.samples import WorldSample


@dataclass(frozen=True)
class WithSamples(Method):
    """A method that is given other texts instead of the prompts: those with samples.

    It is not registered: it exists in a comparison only.

    Attributes:
        method: what answers.
        texts: the prompts with their samples, by prompt.
    """

    name: ClassVar[str] = "with_samples"
    what: ClassVar[str] = "another method, whose prompts have solved samples after them"

    method: Method
    texts: Mapping[str, str]

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Any:
        raise ConfigError(f"{cls.name} wraps another method; it is not loaded by itself.")

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        return self.method.prepare([self.texts[prompt] for prompt in prompts])

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return self.method.place(edge, rows)

    def trained_values(self) -> int | None:
        return self.method.trained_values()


def solved_samples(sample: WorldSample, prompts: Sequence[Prompt], count: int) -> Solved:
    """For each prompt, `count` solved requests of its task, none of which is asked.

    `prompts` are those of the sample, in order. More samples begin with the same ones.
    """
    return {
        prompt.system: solved(prompt, group, count)
        for prompt, group in zip(prompts, sample.groups, strict=True)
    }


def texts_with_samples(samples: Solved) -> dict[str, str]:
    """Each prompt with its samples after it."""
    return {prompt: few_shot_prompt(prompt, pairs) for prompt, pairs in samples.items()}


def solved(prompt: Prompt, asked: Sequence[Record], count: int) -> list[tuple[str, str]]:
    """`count` solved requests (user, target) of a prompt's task, other than those `asked`."""
    rng = Random(f"samples {world_prompts.VERSION}/{prompt.system}")
    taken, found = {record.user for record in asked}, {}
    for _ in range(TRIES):
        if len(found) == count:
            return list(found.items())
        user, target = prompt.draw(rng)
        if user not in taken:
            found.setdefault(user, target)
    raise DataError(f"{count} samples are too many for the task {prompt.task!r}.")
