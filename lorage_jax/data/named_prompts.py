"""Files of system prompts by name, `{"name": ..., "system": ...}`, each to become an adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from lorage_jax.data.records import read_rows, require_text
from lorage_jax.errors import DataError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # also a folder's, and an adapter's in servers


class NamedPrompt(NamedTuple):
    """A system prompt, and its place as FILE:LINE."""

    system: str
    where: str


def read_named_prompts(path: str | Path) -> dict[str, NamedPrompt]:
    """System prompts by name, in the order of the file (JSON lines, or a .json array).

    Raises DataError, naming the line, for a name that is no folder's or that was there before, and
    for an empty prompt.
    """
    found: dict[str, NamedPrompt] = {}
    for where, row in read_rows(path):
        name, system = (require_text(row, field, where) for field in ("name", "system"))
        if not NAME.fullmatch(name):
            raise DataError(
                f"{where}: the name is {name!r}; expected letters, digits and '.-_', with a letter "
                "or digit first."
            )
        if name in found:
            raise DataError(f"{where}: the name {name!r} was there before.")
        found[name] = NamedPrompt(system, where)
    return found
