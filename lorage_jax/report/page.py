"""The parts of a page, as plain text and numbers, before it becomes HTML or Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

DASH = "\u2013"  # stands for a number that is not known


@dataclass(frozen=True)
class Cell:
    """One cell of a table. `note` follows the text in small print: a standard error, a mark."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row, whose first cell is its label. A `group` row is a heading for the rows after it."""

    cells: tuple[Cell, ...]
    kind: Literal["plain", "ours", "group"] = "plain"


@dataclass(frozen=True)
class Table:
    """A table. Columns after the first `text_columns` hold numbers and are right-aligned."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 1


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: Literal["plain", "warning"] = "plain"


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]
    kind: Literal["plain", "words"] = "plain"


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Picture:
    """A picture. `name` is its file next to the Markdown, without .png; `alt` describes it."""

    name: str
    png: bytes
    caption: str
    alt: str


Block = Table | Paragraph | Bullets | Code | Picture


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    title: str
    sections: tuple[Section, ...]

    def pictures(self) -> list[Picture]:
        """All pictures, in the page's order."""
        return [b for s in self.sections for b in s.blocks if isinstance(b, Picture)]


def number(value: Any) -> float | None:
    """`value` if it is a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def percent(value: Any, error: Any = None, signed: bool = False, mark: str = "") -> Cell:
    """A cell with a share in percent (one digit), then its standard error and a mark."""
    value, error = number(value), number(error)
    if value is None:
        return Cell(DASH)
    value = round(100 * value, 1) + 0.0  # no minus before a zero
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    note = (f"± {100 * error:.1f}" if error is not None else "") + mark
    return Cell(text, note)


def decimal(value: Any, form: str = ".1f", unit: str = "") -> Cell:
    """A cell with a number in the given format, or a dash if there is none."""
    value = number(value)
    return Cell(DASH) if value is None else Cell(f"{value:{form}}{unit}")


def row(label: str, *cells: Cell, kind: Literal["plain", "ours"] = "plain") -> Row:
    return Row((Cell(label), *cells), kind)


def group(label: str) -> Row:
    return Row((Cell(label),), "group")
