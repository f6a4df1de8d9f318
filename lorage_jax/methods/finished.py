"""Loads the method that a finished training run left, by the folder of the run."""

from __future__ import annotations

import json
from pathlib import Path

from lorage_jax.errors import WeightsError
from lorage_jax.methods.method import Method, get_method
from lorage_jax.methods.training import RECORDED, get_trainable
from lorage_jax.models.model import Model


def load_finished(run: str | Path, edge: Model) -> Method:
    """The method that was trained in the folder `run`, for `edge`.

    Raises WeightsError if this is no folder of a finished run, or the run was for another edge.
    """
    run = Path(run).expanduser()
    try:
        values = json.loads((run / "config.json").read_text("utf-8"))
        recorded = values["method"]
        _ = values["steps"]
    except (OSError, ValueError, TypeError, KeyError):
        raise WeightsError(
            f"{run} is not the folder of a training run: it has no config.json of one. Expected "
            "the --out or `out` of lorage train."
        ) from None
    name = next((name for name, first in RECORDED.items() if first == recorded), recorded)
    result = run / get_trainable(name).result
    if not result.is_dir():
        raise WeightsError(
            f"{run} has no {result.name}/, so its training has not finished. Let "
            "`lorage train --resume` finish it."
        )
    return get_method(name).load(edge, result)
