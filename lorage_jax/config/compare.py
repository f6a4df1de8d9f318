"""Configuration of `lorage compare`: one experiment, trained by several methods, asked alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorage_jax.config.training import ExperimentConfig
from lorage_jax.errors import ConfigError
from lorage_jax.fields import check_types, require


@dataclass(frozen=True)
class WorldQuestions:
    """Questions about the built-in tasks: prompts per split, and queries per prompt."""

    prompts: int = 64
    queries: int = 4
    families: tuple[str, ...] = ("words", "tools")
    seed: int = 2026

    def __post_init__(self):
        check_types(self)
        for name in ("prompts", "queries"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of methods.

    Attributes:
        base: the run of every method: models, data, steps, optimizer. Its `out` is the folder of
            the comparison, with a run per method and seed in it.
        methods: per row of the table, in its order: the fields of `base` that the method changes,
            such as `settings`. A row is called like its method; one of another name has a field
            `method`. `samples` is a number of solved samples that are appended to every prompt.
        questions: what all methods are asked.
    """

    base: ExperimentConfig
    methods: Mapping[str, Mapping[str, Any]]
    questions: WorldQuestions = field(default_factory=WorldQuestions)

    def __post_init__(self):
        require(bool(self.methods), "methods is empty; expected at least one.")
        for name in self.methods:
            count = self.samples(name)
            require(
                type(count) is int and count >= 0,
                f"samples of {name} is {count!r}; expected a number, 0 or more.",
            )

    def method(self, name: str) -> str:
        """The method of a row."""
        return self.methods.get(name, {}).get("method", name)

    def samples(self, name: str) -> int:
        """The number of solved samples that a row appends to every prompt."""
        return self.methods.get(name, {}).get("samples", 0)

    def run(self, name: str, seed: int) -> ExperimentConfig:
        """The run of one row and seed. Raises ConfigError for a row that is not in here."""
        if name not in self.methods:
            raise ConfigError(
                f"the comparison has no method {name!r}; expected {', '.join(self.methods)}."
            )
        out = str(Path(self.base.out) / f"{name}-{seed}")
        changed = {k: value for k, value in self.methods[name].items() if k != "samples"}
        own = {"method": self.method(name), "seed": seed, "out": out}
        return dataclasses.replace(self.base, **{**changed, **own})
