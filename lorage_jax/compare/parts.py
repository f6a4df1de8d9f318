"""The parts of a comparison: each row's method, once per seed if it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorage_jax.bundled import generator_folder
from lorage_jax.config import CompareConfig, ExperimentConfig
from lorage_jax.errors import ConfigError
from lorage_jax.hf.load import load_model
from lorage_jax.methods.method import get_method
from lorage_jax.train.experiment import Trainable

OURS, BARE = "lora_gen", "bare"


@dataclass(frozen=True)
class Part:
    """One row's method, trained with one seed; `experiment` is None if it is not trained here."""

    row: str
    method: str
    seed: int
    experiment: ExperimentConfig | None
    samples: int = 0  # solved samples after every prompt
    trained: Path | None = None  # the result of a finished run

    @property
    def name(self) -> str:
        return self.row if self.experiment is None else f"{self.row}-{self.seed}"


def all_parts(config: CompareConfig, rows: Sequence[str], seeds: int) -> list[Part]:
    """The parts of a comparison: rows of `config`, or methods without training; bare first.

    Raises ConfigError for an unknown method, and for one with trained parts that `config` lacks.
    """
    found = [] if BARE in rows else [Part(BARE, BARE, 0, None)]
    for row in dict.fromkeys(rows):
        method, samples = config.method(row), config.samples(row)
        if (trained := config.trained(row)) is not None:
            found.append(Part(row, method, 0, None, samples, trained))
        elif Trainable in get_method(method).__mro__:
            runs = [(seed, config.run(row, seed)) for seed in range(seeds)]
            found += [Part(row, method, *run, samples) for run in runs]
        else:
            found.append(Part(row, method, 0, None, samples))
    return found


def check_untrained(config: CompareConfig, parts: Sequence[Part]) -> None:
    """Loads the methods that are not trained, and looks for the results that others use.

    Raises ConfigError for a method that needs a folder, and for a folder that is not there.
    """
    edge = load_model(config.base.edge, config.base.dtype)
    for part in parts:
        if part.trained is not None and not generator_folder(part.trained).is_dir():
            raise ConfigError(
                f"{part.row} uses {part.trained}, which is not a folder. Train it first, or leave "
                "the row out (--methods)."
            )
        if part.experiment is None and part.trained is None:
            get_method(part.method).load(edge)
