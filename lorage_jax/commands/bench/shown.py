"""Prints the figures of a measurement and makes them the command's result."""

from __future__ import annotations

from typing import Any

from lorage_jax.provenance import machine


def shown(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Prints the figures with the machine, and returns them with the measurement's name."""
    result = {"bench": name, **figures}
    lines = _lines(result if "machine" in result else result | machine())
    width = max(map(len, lines)) + 2
    for key, value in lines.items():
        print(f"{key:{width}}{_text(value)}")
    return result


def _lines(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The figures without nesting: those of inner tables are named `table.figure`."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        inner = isinstance(value, dict)
        found |= _lines(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _text(value: Any) -> str:
    large = isinstance(value, int) and not isinstance(value, bool) and value >= 10**6
    return f"{value:.4g}" if large or isinstance(value, float) else str(value)
