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
        methods: per method, the fields of `base` that it changes, such as `settings`; the order is
            that of the table.
        questions: what all methods are asked.
    """

    base: ExperimentConfig
    methods: Mapping[str, Mapping[str, Any]]
    questions: WorldQuestions = field(default_factory=WorldQuestions)

    def __post_init__(self):
        require(bool(self.methods), "methods is empty; expected at least one.")

    def run(self, method: str, seed: int) -> ExperimentConfig:
        """The run of one method and seed. Raises ConfigError for a method that is not in here."""
        if method not in self.methods:
            raise ConfigError(
                f"the comparison has no method {method!r}; expected {', '.join(self.methods)}."
            )
        out = str(Path(self.base.out) / f"{method}-{seed}")
        own = {"method": method, "seed": seed, "out": out}
        return dataclasses.replace(self.base, **{**self.methods[method], **own})
