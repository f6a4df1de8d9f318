"""A journal of several processes: they divide the work, and all get all of its results.

Each process keeps what it finished in a file of its own. Batches are the same as with one process,
and each is run by one of them, so the values are the same, too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax

from lorage_jax.distributed import gather_texts, is_main, together
from lorage_jax.files.journal import Journal

Batch = TypeVar("Batch")


class SharedJournal(Journal):
    """All processes open it, and come to the same `exchanged` blocks in the same order."""

    def __init__(self, path: Path | None = None):
        number = jax.process_index()
        super().__init__(path if path is None or is_main() else _numbered(path, number))
        self._fresh: dict[str, Any] = {}
        self._first = path
        self.processes = jax.process_count()

    @classmethod
    def open(cls, path: Path | None) -> SharedJournal:
        """The journal in `path` and in the files of the other processes, as far as this one sees.

        Raises OutputError if one of them is another file.
        """
        journal = cls(path)
        found: dict[str, Any] = {}
        with together():
            for file in _files(path):
                found |= Journal.open(file).values
        journal._take(found)
        return journal

    def add(self, values: dict[str, Any]) -> None:
        super().add(values)
        self._fresh |= values

    def part(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        return itertools.islice(batches, jax.process_index(), None, self.processes)

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """If one process fails in the block, all raise. The block must not run collectives."""
        self._fresh = {}
        with together():
            yield
        self._take(self._fresh)

    def _take(self, mine: dict[str, Any]) -> None:
        """Gives `mine` to all processes, and takes theirs."""
        for text in gather_texts(json.dumps(mine)):
            self.values |= json.loads(text)

    def remove(self) -> None:
        for file in _files(self._first):
            file.unlink(missing_ok=True)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number}")


def _files(path: Path | None) -> list[Path]:
    """The journal's own file and those that the other processes wrote beside it."""
    if path is None:
        return []
    beside = path.parent.glob(f"{path.name}-*")
    others = sorted(one for one in beside if one.name.rpartition("-")[2].isdecimal())
    return [one for one in (path, *others) if one.exists()]
