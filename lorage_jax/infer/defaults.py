"""Settings of generation that a model's folder names: its generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorage_jax.errors import WeightsError
from lorage_jax.models.model import Model

FILE = "generation_config.json"


def generation_defaults(model: Model) -> dict[str, Any]:
    """The settings in the generation_config.json of the model's folder; empty without one.

    Raises WeightsError if it is damaged.
    """
    path = None if model.source is None else Path(model.source) / FILE
    if path is None or not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected a JSON object.")
    return values


def default_penalty(model: Model) -> float:
    """The repetition penalty that the folder names; 1, which has no effect, without one."""
    value = generation_defaults(model).get("repetition_penalty")
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise WeightsError(
            f"{model.source}/{FILE}: repetition_penalty is {value!r}; expected a number above 0."
        )
    return float(value)
