"""Prints the figures of a measurement and makes them the command's result."""

from __future__ import annotations

from typing import Any

import jax

from lorage_jax.provenance import machine

WIDENED = (
    "a CPU widens all bfloat16 weights to float32 in every call, which hides the cost of the "
    "prompt; use --dtype float32"
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
    """A warning for bfloat16 figures on a CPU; None for all others."""
    return WIDENED if dtype == "bfloat16" and jax.default_backend() == "cpu" else None


def _text(value: Any) -> str:
    large = isinstance(value, int) and not isinstance(value, bool) and value >= 10**6
    return f"{value:.4g}" if large or isinstance(value, float) else str(value)
