"""All figures of benches and other results, under their names in the files."""

from __future__ import annotations

from typing import Any

from lorage_jax.report.inputs import Evaluation, Inputs
from lorage_jax.report.page import DASH, Block, Cell, Paragraph, Section, Table, row

LONGEST_VALUE = 100  # characters in a table


def figures(inputs: Inputs) -> Section | None:
    """One table per file with all its figures, under their names in the file."""
    blocks: list[Block] = []
    for result in inputs.results:
        if isinstance(result, Evaluation):
            continue
        flat = _flat(result.values)
        rows = tuple(row(name, Cell(_shown(value))) for name, value in flat.items())
        blocks.append(Table(f"{result.what}: {result.name}", ("figure", "value"), rows))
    if not blocks:
        return None
    about = Paragraph(
        "All figures of the files that are not evaluations, under their names in the file."
    )
    return Section("Other measurements", (about, *blocks))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts, joining names with dots; leaves out parts that other sections show."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if not prefix and name in ("provenance", "bench", "kind"):
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value is None:
        return DASH
    text = value if isinstance(value, str) else str(value)
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{len(value)} values" if isinstance(value, list) else text[:LONGEST_VALUE] + "…"
