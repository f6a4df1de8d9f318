"""A record of finished requests, so that an interrupted evaluation continues where it stopped.

The file holds JSON lines of {"key", "value"}. A key is a hash over everything that decides the
value (weights, gates, tokens, settings), so one file may serve several models, and a stale entry is
never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from lorage_jax.errors import OutputError

FORMAT = "lorage-journal/1"
HEADER = json.dumps({"format": FORMAT})
Batch = TypeVar("Batch")


def request_key(*parts: str | bytes | int) -> str:
    """One hash over all parts. Their order and the boundaries between them matter."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(f"{type(part).__name__}{len(data)}:".encode() + data)
    return digest.hexdigest()[:32]


class Journal:
    """A mapping from key to JSON value, kept in a file, or in memory only if there is no path.

    Work on missing values goes through `part` and `exchanged`, so that several processes can share
    it (`evaluate/shared_journal.py`):

        with journal.exchanged():
            for batch in journal.part(batches):
                journal.add(...)
    """

    processes = 1

    def __init__(self, path: Path | None = None):
        self.values: dict[str, Any] = {}
        self._path = path

    @classmethod
    def open(cls, path: Path | None) -> Journal:
        """The journal in `path`, empty if there is none. Raises OutputError for any other file."""
        journal = cls(path)
        if path is not None and path.exists():
            text = path.read_bytes().decode("utf-8", "replace")
            lines = text.splitlines()
            # A killed run may have left a part of the header and nothing else.
            begun = "\n" not in text and HEADER.startswith(text)
            if not begun and lines[:1] != [HEADER]:
                raise OutputError(
                    f"{path} is not a record of finished requests (format {FORMAT}); move it away "
                    "or choose another name for the result."
                )
            journal.values = dict(filter(None, map(_entry, lines[1:])))
        return journal

    def __len__(self) -> int:
        return len(self.values)

    def get(self, key: str) -> Any:
        """The value of `key`, or None."""
        return self.values.get(key)

    def add(self, values: dict[str, Any]) -> None:
        """Adds the values; they are in the file when this returns."""
        self.values |= values
        if self._path is None or not values:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        size = self._path.stat().st_size if self._path.exists() else 0
        fresh = size <= len(HEADER)  # nothing, or a part of the header
        entries = [json.dumps({"key": key, "value": value}) for key, value in values.items()]
        # A killed run may have left half a line, so start on a new one.
        with self._path.open("w" if fresh else "a", encoding="utf-8") as file:
            file.write("\n".join([HEADER if fresh else "", *entries]) + "\n")

    def part(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches that this process works on: all of them."""
        return batches

    def exchanged(self) -> AbstractContextManager[None]:
        """A block at whose end all processes have the values that each added in it."""
        return nullcontext()

    def remove(self) -> None:
        """Removes the file, once the result has been written elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _entry(line: str) -> tuple[str, Any] | None:
    try:
        entry = json.loads(line)
        return entry["key"], entry["value"]
    except (ValueError, TypeError, KeyError):
        return None  # half a line of a killed run
