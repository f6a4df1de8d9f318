"""Finished training runs that an evaluation asks beside a generator, under their folders' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorage_jax import distributed
from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.arms import CONTROLS, MAIN
from lorage_jax.evaluate.results import OLD_ARMS
from lorage_jax.evaluate.tool_calls import READS
from lorage_jax.fields import home_path

if TYPE_CHECKING:
    from lorage_jax.methods.finished import Finished

# Names of other arms, today's and those that are read as today's from earlier results.
TAKEN = {*READS, *CONTROLS, *OLD_ARMS, "few_shot", "in_context_cached", "model"}


def find_runs(runs: Sequence[Path]) -> dict[str, Finished]:
    """Finds what the runs left, by name; weights are not read yet.

    Raises ConfigError if two have one name, if one has the name of another arm, or is of a
    generator, and if processes see different runs. Raises WeightsError if one has not finished.
    """
    if not runs:
        return {}
    from lorage_jax.methods.finished import find_finished  # imports what trains

    names = [_name(run) for run in runs]
    for name in names:
        if name in TAKEN or names.count(name) > 1:
            whose = "an arm of evaluations" if name in TAKEN else "two runs"
            raise ConfigError(
                f"--run: {name} is the name of {whose}, and runs are named by their folders. "
                "Rename the folder, or give a link with another name."
            )
    found = {name: find_finished(run) for name, run in zip(names, runs, strict=True)}
    for name, one in found.items():
        if one.method == MAIN:
            raise ConfigError(
                f"--run: {name} is the training of a generator. Score it by itself, with "
                f"--generator {one.folder}."
            )
    distributed.check_same(facts(found), "All processes need the same results of --run.")
    return found


def facts(found: Mapping[str, Finished]) -> dict[str, Any]:
    """JSON values that tell the runs of a result from others."""
    return {name: {"method": one.method, "contents": one.contents} for name, one in found.items()}


def _name(run: Path) -> str:
    return home_path(run).absolute().name
