"""The figures of a measurement, on the terminal and as the command's result."""

from __future__ import annotations

from typing import Any

import jax

from lorage_jax.provenance import machine

WIDENED = (
    "a CPU widens all bfloat16 weights to float32 in every call: that time and memory hides what "
    "the prompt costs; see --dtype float32"
)


def shown(name: str, figures: dict[str, Any], note: str | None = None) -> dict[str, Any]:
    """Prints the figures with the machine, and returns them with the measurement's name."""
    result = {"bench": name, **figures}
    if note is not None:
        result["note"] = note
    lines = result | machine()
    width = max(map(len, lines)) + 2
    for key, value in lines.items():
        print(f"{key:{width}}{_text(value)}")
    return result


def widened(dtype: str) -> str | None:
    """The warning that belongs to bfloat16 figures of a CPU."""
    return WIDENED if dtype == "bfloat16" and jax.default_backend() == "cpu" else None


def _text(value: Any) -> str:
    large = isinstance(value, int) and not isinstance(value, bool) and value >= 10**6
    return f"{value:.4g}" if large or isinstance(value, float) else str(value)
