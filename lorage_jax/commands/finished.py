"""Finished training runs that an evaluation asks beside a generator, under their folders' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.arms import CONTROLS
from lorage_jax.evaluate.tool_calls import READS

if TYPE_CHECKING:
    from lorage_jax.methods.method import Method
    from lorage_jax.models.model import Model

TAKEN = {*READS, *CONTROLS, "few_shot"}  # names of arms


def check_runs(runs: Sequence[Path]) -> None:
    """Raises ConfigError if two runs' folders have one name, or one has the name of an arm."""
    names = [_name(run) for run in runs]
    for name in names:
        if name in TAKEN or names.count(name) > 1:
            raise ConfigError(
                f"--run: {name} is the name of another arm of this evaluation, and runs are named "
                "by their folders. Rename the folder, or give a link with another name."
            )


def finished_methods(runs: Sequence[Path], edge: Model) -> dict[str, Method]:
    """The methods that finished runs left, by name. Raises WeightsError if one cannot be used."""
    if not runs:
        return {}
    from lorage_jax.methods.finished import load_finished  # imports what trains

    return {_name(run): load_finished(run, edge) for run in runs}


def _name(run: Path) -> str:
    return run.expanduser().absolute().name
