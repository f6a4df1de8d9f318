"""Files of solved requests of one task: a question and its right answer per row."""

from __future__ import annotations

from pathlib import Path

from lorage_jax.data.records import Row, read_rows, refuse_history, require_text
from lorage_jax.errors import DataError

LAYOUTS = (("user", "target"), ("input", "output"))


def read_solved(path: str | Path, prompt: str = "") -> list[tuple[str, str]]:
    """(user, target) pairs of a file of {user, target} or {input, output} rows.

    JSON lines, or a .json array. A user text may be empty. Beside input and output, an
    `instruction` may only repeat the system `prompt`. Raises DataError, naming the line, for any
    other row.
    """
    found = []
    for where, row in read_rows(path):
        layout = next((names for names in LAYOUTS if set(names) <= row.keys()), None)
        if layout is None:
            raise DataError(
                f"{where}: found the fields {', '.join(map(str, row)) or 'none'}; expected a "
                "solved request, {user, target} or {input, output}."
            )
        user, target = layout
        if user == "input":
            _refuse_unread(row, prompt, where)
        found.append((require_text(row, user, where, empty=True), require_text(row, target, where)))
    return found


def _refuse_unread(row: Row, prompt: str, where: str) -> None:
    """Raises DataError for parts of an Alpaca row's request that are not in its input."""
    refuse_history(row, where)
    if str(row.get("instruction") or "").strip() not in ("", prompt.strip()):
        raise DataError(
            f"{where}: the field instruction is not the prompt, and only input would be the "
            "request. Write the whole request as {user, target}."
        )
