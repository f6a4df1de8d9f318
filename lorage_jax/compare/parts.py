"""The parts of a comparison: each row's method, once per seed if it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorage_jax.bundled import generator_folder
from lorage_jax.compare.task_samples import SOLVED
from lorage_jax.config import CompareConfig, ExperimentConfig, TaskQuestions
from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.arms import BARE
from lorage_jax.fields import require_kind
from lorage_jax.hf.load import load_model
from lorage_jax.methods.method import FromSamples, get_method
from lorage_jax.methods.training import is_trainable


@dataclass(frozen=True)
class Part:
    """One row's method, once or for one of its seeds.

    Attributes:
        row: its row in the table.
        method: what is asked.
        seed: of its run or result.
        experiment: the run, of this method or of one whose result it uses; None if there is none.
        samples: solved samples of every prompt.
        trained: the result of a finished run.
        learning: settings with which it learns from the samples, if not its own.
        has_seeds: True if there is a part for every seed.
    """

    row: str
    method: str
    seed: int
    experiment: ExperimentConfig | None
    samples: int = 0
    trained: Path | None = None
    learning: Any = None
    has_seeds: bool = False

    @property
    def name(self) -> str:
        return f"{self.row}-{self.seed}" if self.has_seeds else self.row


def all_parts(config: CompareConfig, rows: Sequence[str], seeds: int) -> list[Part]:
    """The parts of a comparison: rows of `config`, or methods without training; bare first.

    Raises ConfigError for an unknown method, for one with trained parts that `config` lacks, and
    for more samples than there are.
    """
    found = [] if BARE in rows else [Part(BARE, BARE, 0, None)]
    for row in dict.fromkeys(rows):
        method, samples = config.method(row), config.samples(row)
        if isinstance(config.questions, TaskQuestions) and samples > SOLVED:
            raise ConfigError(
                f"the row {row} has {samples} samples; a task of a file keeps at most {SOLVED} "
                "besides its questions. Use fewer."
            )
        given = {"samples": samples, "learning": _learning(config, row)}
        if config.trained(row) is not None:
            each = config.has_seeds(row)
            for seed in range(seeds if each else 1):
                result = config.trained(row, seed)
                found.append(Part(row, method, seed, None, trained=result, has_seeds=each, **given))
        elif config.uses_runs(row) or is_trainable(get_method(method)):
            _check_uses(config, row)
            for seed in range(seeds):
                run = config.run(row, seed)
                found.append(Part(row, method, seed, run, has_seeds=True, **given))
        else:
            found.append(Part(row, method, 0, None, **given))
    return found


def _learning(config: CompareConfig, row: str) -> Any:
    """The settings that a row gives its learning from samples.

    Raises ConfigError unless they are of its method.
    """
    if (given := config.methods.get(row, {}).get("learning")) is None:
        return None
    method = get_method(config.method(row))
    if not issubclass(method, FromSamples):
        raise ConfigError(
            f"the row {row} has `learning`, but {method.name} does not learn from samples. Leave "
            "it out."
        )
    wanted = type(method.learning())
    require_kind(given, wanted, f"learning of {row}", f"{wanted.__name__} of {wanted.__module__}")
    return given


def _check_uses(config: CompareConfig, row: str) -> None:
    """Raises ConfigError if a row uses runs of a row without any, or has no samples to learn from.

    Without samples, such a row would repeat the other one.
    """
    if not config.uses_runs(row):
        return
    method = get_method(config.method(row))
    if issubclass(method, FromSamples) and not config.samples(row):
        raise ConfigError(f"the row {row} learns from samples, but has none; give it `samples`.")
    other = config.run(row, 0).method
    if other is None or not is_trainable(get_method(other)):
        raise ConfigError(f"the row {row} uses runs of {other}, a method that is not trained.")


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
