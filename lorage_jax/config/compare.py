"""Configuration of `lorage compare`: one experiment, trained by several methods, asked alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorage_jax.config.data import HeldOut
from lorage_jax.config.training import ExperimentConfig
from lorage_jax.errors import ConfigError, did_you_mean
from lorage_jax.fields import check_types, expand_home, home_path, require, require_least

# Fields of a row that are no fields of an experiment.
ADDED = ("samples", "trained", "after", "learning")
OWN = {"seed", "out"}  # fields of an experiment that differ between the runs of a row


@dataclass(frozen=True)
class WorldQuestions:
    """Questions about the built-in tasks: prompts per split, and queries per prompt."""

    prompts: int = 64
    queries: int = 4
    families: tuple[str, ...] = ("words", "tools")
    seed: int = 2026

    def __post_init__(self):
        check_types(self)
        require_least(self, 1, "prompts", "queries")


@dataclass(frozen=True)
class TaskQuestions:
    """Questions of a file of tasks, {name, definition, instances} each, by what was held out.

    Attributes:
        path: the file, or a folder of files.
        held_out: what training was not shown, as in the `Source` of the training data.
        splits: as of a `Source` of tasks: `instances`, `paraphrases`, `tasks`.
        prompts: the most tasks per split, each in one of its wordings.
        queries: questions per task; a task with fewer is left out.
        longest_answer: characters; instances with a longer answer are not asked.
        seed: draws tasks, wordings and questions.
    """

    path: str
    held_out: HeldOut = field(default_factory=HeldOut)
    splits: tuple[str, ...] = ("instances", "paraphrases", "tasks")
    prompts: int = 32
    queries: int = 8
    longest_answer: int = 40
    seed: int = 2026

    def __post_init__(self):
        check_types(self)
        expand_home(self, "path")
        require(len(self.splits) > 0, "splits is empty; name at least one.")
        require_least(self, 1, "prompts", "queries", "longest_answer")


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of methods.

    Attributes:
        base: the run of every method: models, data, steps, optimizer. Its `out` is the folder of
            the comparison, with a run per method and seed in it.
        methods: per row of the table, in its order: the fields of `base` that the method changes,
            such as `settings`. A row is called like its method; one of another name has a field
            `method`. `samples` is a number of solved samples, appended to every prompt or, for a
            method that learns from samples, given to it. `trained` is the result of a finished run,
            such as a generator's folder: the row is then not trained again, whatever the seeds, or
            `{seed}` in it stands for the number of each. `after` is another row, whose results the
            row uses. `learning` are settings of a method that learns from samples, such as
            `TuningSettings` of `tuned_cards`, instead of its own.
        questions: what all methods are asked, about the built-in world or a file of tasks.
        figures: the folder that keeps the figures of finished rows; by default `results` in `out`.
            Runs are large and figures small, so these may be kept with the code.
    """

    base: ExperimentConfig
    methods: Mapping[str, Mapping[str, Any]]
    questions: WorldQuestions | TaskQuestions = field(default_factory=WorldQuestions)
    figures: str = ""

    def __post_init__(self):
        expand_home(self, "figures")
        require(bool(self.methods), "methods is empty; expected at least one.")
        for name in self.methods:
            self._check_fields(name)
            count = self.samples(name)
            require(
                type(count) is int and count >= 0,
                f"samples of {name} is {count!r}; expected a number, 0 or more.",
            )

    def _check_fields(self, name: str) -> None:
        row = self.methods[name]
        require(
            isinstance(row, Mapping),
            f"the row {name} is {row!r}; expected a dictionary of the fields that it changes.",
        )
        known = {one.name for one in dataclasses.fields(self.base)} - OWN | set(ADDED)
        for field_ in row:
            require(
                field_ not in OWN,
                f"the row {name} sets {field_}, which the comparison sets for each of its runs; "
                "leave it out.",
            )
            require(
                field_ in known,
                f"the row {name} has a field {field_!r}; expected a field of ExperimentConfig, or "
                f"{' or '.join(ADDED)}{did_you_mean(str(field_), known) or '.'}",
            )
        self._check_after(name, row)

    def _check_after(self, name: str, row: Mapping[str, Any]) -> None:
        if (other := row.get("after")) is None:
            return
        found = self.methods.get(other) if isinstance(other, str) else None
        require(
            found is not None and not {"after", "trained"} & set(found),
            f"the row {name} comes after {other!r}; expected a row that is trained here.",
        )
        changed = set(row) - {"method", "samples", "after", "learning"}
        require(
            not changed,
            f"the row {name} uses the runs of {other}, so it cannot set {', '.join(changed)}.",
        )

    @property
    def figures_folder(self) -> Path:
        """The folder of the figures."""
        return Path(self.figures) if self.figures else Path(self.base.out) / "results"

    def method(self, name: str) -> str:
        """The method of a row."""
        return self.methods.get(name, {}).get("method", name)

    def samples(self, name: str) -> int:
        """The number of solved samples of every prompt in a row."""
        return self.methods.get(name, {}).get("samples", 0)

    def trained(self, name: str, seed: int = 0) -> Path | None:
        """The finished result that a row uses, or None if it is trained here."""
        folder = self.methods.get(name, {}).get("trained")
        return None if folder is None else home_path(_numbered(folder, seed))

    def has_seeds(self, name: str) -> bool:
        """True if a row with finished results has one for each seed."""
        folder = self.methods.get(name, {}).get("trained")
        return folder is not None and _numbered(folder, 0) != str(folder)

    def run(self, name: str, seed: int) -> ExperimentConfig:
        """The run of one row and seed. Raises ConfigError for a row that is not in here."""
        if name not in self.methods:
            raise ConfigError(
                f"the comparison has no method {name!r}; expected {', '.join(self.methods)}."
            )
        if (other := self.methods[name].get("after")) is not None:
            return self.run(other, seed)
        out = str(Path(self.base.out) / f"{name}-{seed}")
        changed = {k: v for k, v in self.methods[name].items() if k not in ADDED}
        own = {"method": self.method(name), "seed": seed, "out": out}
        return dataclasses.replace(self.base, **{**changed, **own})

    def uses_runs(self, name: str) -> bool:
        """True if a row uses the runs of another."""
        return "after" in self.methods.get(name, {})


def _numbered(folder: str | Path, seed: int) -> str:
    return str(folder).replace("{seed}", str(seed))
