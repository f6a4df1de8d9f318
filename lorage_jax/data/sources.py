"""Loads a `Source` of any kind as groups: a system prompt with its queries.

`KINDS` names the loader of each kind. The built-in tasks come from `world/`, a package above this
one in the import order, so that kind is registered by its address and imported on first use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grain
import numpy as np

from lorage_jax.config import Source
from lorage_jax.data.batches import Group
from lorage_jax.data.records import ENDINGS, Record, Row, Skipped, read_bytes, read_rows, to_record
from lorage_jax.data.task_prompts import TaskPrompts
from lorage_jax.data.task_table import get_task
from lorage_jax.data.tasks import sample_bank, task_prompt
from lorage_jax.data.written_tasks import divide, task_files, to_tasks
from lorage_jax.errors import DataError, listed
from lorage_jax.fields import home_path, to_dict

TEMPLATE_VERSION = 1  # of few-shot prompts; a run records its own template beside this
# Fields of a source that versions before them did not have.
LATER = ("skip_bad_rows", "held_out", "forms", "task")
_DEFAULTS = to_dict(Source("nothing"))


@dataclass(frozen=True)
class LoadedSource:
    """One source in memory: its endless groups, `dataset(seed)`, and the origin of group i.

    `note` says what was left out of it, if anything was.
    """

    dataset: Callable[[int], grain.MapDataset]
    places: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class SourceKind:
    """How sources of one kind become groups.

    `load(source, queries)` reads and checks one source, for groups of at most `queries` queries.
    `versions` is set if the data are drawn by code instead of read from files: it returns the
    versions of that code, which become part of every data fingerprint. `task_of` then names the
    task of a system prompt, if it is one of theirs.
    """

    load: Callable[[Source, int], LoadedSource]
    versions: Callable[[], list[int]] | None = None
    task_of: Callable[[str], str | None] | None = None


def load_source(source: Source, queries: int) -> LoadedSource:
    """Reads and checks one source, for groups of at most `queries` queries.

    Raises DataError for missing or damaged files and for an unknown task, family or split.
    """
    return source_kind(source.kind).load(source, queries)


def seeded(sources: Sequence[LoadedSource], seed: int) -> list[grain.MapDataset]:
    """The data of each source with a seed of its own; indices are numbered through all sources."""
    parts, start = [], 0
    for number, source in enumerate(sources):
        own_seed = Random(f"{seed}/{number}").getrandbits(32)
        parts.append(source.dataset(own_seed).map(_Shift(start)))
        start += len(source.places)
    return parts


@dataclass(frozen=True)
class _Shift:
    start: int

    def __call__(self, item: Any) -> Any:
        """A `Group`, or another dataclass with an `index`, with the number that it has in all."""
        return dataclasses.replace(item, index=item.index + self.start)


def source_kind(name: str) -> SourceKind:
    """The kind registered in `KINDS` as `name`, imported on first use.

    Raises DataError if there is none.
    """
    if name not in KINDS:
        raise DataError(
            f"a source of kind {name!r} has no system prompts; expected {', '.join(KINDS)}."
        )
    found = KINDS[name]
    if isinstance(found, SourceKind):
        return found
    module, _, attribute = found.partition(":")
    return getattr(importlib.import_module(module), attribute)


def task_marks(source: Source) -> list[str]:
    """Texts by which prompts of `source.task` are known: one of them is part of every prompt.

    Empty for drawn data, whose `SourceKind.task_of` knows them, and for a task without definitions.
    """
    if source.kind == "instruction":
        return [source.task]
    if source.kind != "tasks":
        return []
    tasks = to_tasks(source_rows(source, Skipped(source.skip_bad_rows)))
    return [text for task in tasks if task.name == source.task for text in task.definitions]


def data_fingerprint(sources: Sequence[Source]) -> str:
    """SHA-256 of the sources' fields, the content of local files (not their paths) and versions.

    The versions are those of few-shot prompts and of all code that draws data.
    """
    described = [_described(source) for source in sources]
    kinds = {name: source_kind(name) for name in KINDS}
    drawn = {name: kind.versions() for name, kind in kinds.items() if kind.versions is not None}
    for source, values in zip(sources, described, strict=True):
        if source.kind not in drawn and (files := local_files(source)):
            hashes = [hashlib.sha256(read_bytes(file)).hexdigest() for file in files]
            values["path"] = hashes[0] if len(hashes) == 1 else hashes
    versions = [TEMPLATE_VERSION, *(version for one in drawn.values() for version in one)]
    text = json.dumps([described, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(source: Source) -> dict[str, Any]:
    """The fields of a source; later ones only if set, for the fingerprints of earlier versions."""
    values = to_dict(source)
    later = {name: value for name, value in _DEFAULTS.items() if name in LATER}
    return {name: v for name, v in values.items() if name not in later or v != later[name]}


def source_rows(source: Source, skipped: Skipped | None = None) -> list[tuple[str, Row]]:
    """(place, row) for every row of a source: a file, a split in a folder, or a Hub data set.

    `skipped` takes the lines that are not JSON objects. Raises DataError if it cannot be loaded.
    """
    files = local_files(source)
    if not files:
        return _hub_rows(source)
    return [row for file in files for row in read_rows(file, skipped)]


def local_files(source: Source) -> list[Path]:
    """The files that a source names: all of a folder of tasks, otherwise one; none on the Hub.

    Raises DataError if a folder does not hold what is asked for.
    """
    if source.kind == "tasks" and Path(source.path).is_dir():
        return task_files(source.path)
    path = local_file(source)
    return [path] if path else []


def local_file(source: Source) -> Path | None:
    """The file that a source names; in a folder, the file named after the split.

    Returns None if `source.path` names a data set of the Hub. Raises DataError if a folder has no
    file of that name.
    """
    path = home_path(source.path)
    if path.is_dir():
        found = [path / f"{source.split}{suffix}" for suffix in ENDINGS]
        file = next((file for file in found if file.is_file()), None)
        if file is None:
            raise DataError(f"{path}: holds no {source.split}.jsonl, .json or .gz of these.")
        return file
    return path if path.is_file() or path.name.endswith(ENDINGS) else None


def _hub_rows(source: Source) -> list[tuple[str, Row]]:
    import datasets  # slow to import and needed only here

    choices = source.kind == "choices"
    subset = (get_task(source.name).subset if choices else source.name) or None
    try:
        rows = datasets.load_dataset(source.path, subset, split=source.split)
    except Exception as error:  # the library raises a dozen types, offline and for wrong names
        raise DataError(
            f"{source.path}: not a file here, and it cannot be loaded as a data set of the Hub "
            f"(configuration {subset}, split {source.split}): {error}"
        ) from None
    name = f"{source.path}[{source.split}]"
    return [(f"{name} row {number}", dict(row)) for number, row in enumerate(rows)]


def _instruction(source: Source, queries: int) -> LoadedSource:
    """Groups rows by identical system text, in chunks of Q; each row comes once per epoch."""
    skipped = Skipped(source.skip_bad_rows)
    rows = source_rows(source, skipped)
    made = [(place, skipped.attempt(partial(to_record, row, place))) for place, row in rows]
    records = [(place, record) for place, record in made if record is not None]
    if not records:
        raise DataError(f"{source.path}: no row can be used. {skipped.summary}")
    if source.needs_input:
        records = [(place, record) for place, record in records if record.user.strip()]
    if not records:
        raise DataError(f"{source.path}: no row has an input, and needs_input is set.")
    if source.task:
        records = [(place, record) for place, record in records if record.system == source.task]
    if not records:
        raise DataError(f"{source.path}: no row has the system prompt {source.task[:60]!r}.")
    by_system: dict[str, list[tuple[str, Record]]] = {}
    for place, record in records[: source.limit]:
        by_system.setdefault(record.system, []).append((place, record))
    groups, places = [], []
    for system, members in by_system.items():
        for at in range(0, len(members), queries):
            chunk = members[at : at + queries]
            queries_of = tuple(record.query for _, record in chunk)
            groups.append(Group(system, queries_of, len(groups)))
            places.append(chunk[0][0])
    return LoadedSource(
        lambda seed: grain.MapDataset.source(groups).seed(seed).shuffle().repeat(),
        places,
        skipped_note(source, skipped),
    )


def skipped_note(source: Source, skipped: Skipped) -> str:
    """The rows of a source that were skipped, for a user; empty if there are none."""
    return f"{source.path}: {skipped.summary}" if skipped.reasons else ""


def _choices(source: Source, queries: int) -> LoadedSource:
    """Groups Q items of the task under a freshly drawn few-shot prompt; each once per epoch."""
    skipped = Skipped(source.skip_bad_rows)
    rows = source_rows(source, skipped)
    task = get_task(source.name)
    made = [
        (place, skipped.attempt(partial(task.to_example, row, place)))
        for place, row in rows[: source.limit]
    ]
    places = [place for place, item in made if item is not None]
    items = [item for _, item in made if item is not None]
    if not items:
        raise DataError(f"{source.path}: no row can be used. {skipped.summary}")
    bank = sample_bank(items)

    def group(indices: list[int], generator: np.random.Generator) -> Group:
        rng = Random(int(generator.integers(1 << 62)))
        asked = [items[i] for i in indices]
        system = task_prompt(task, bank, asked, rng.randint(*source.shots), rng)
        return Group(system, tuple((e.user, e.target) for e in asked), indices[0])

    def dataset(seed: int) -> grain.MapDataset:
        order = grain.MapDataset.source(range(len(items))).seed(seed).shuffle()
        return order.batch(queries, batch_fn=list).random_map(group).repeat()

    return LoadedSource(dataset, places, skipped_note(source, skipped))


def _tasks(source: Source, queries: int) -> LoadedSource:
    """Groups Q instances of a task under a freshly drawn prompt; each instance once per epoch."""
    skipped = Skipped(source.skip_bad_rows)
    rows = source_rows(source, skipped)[: source.limit]
    tasks = divide(to_tasks(rows, skipped), source.held_out, source.split)
    if source.task:
        names = [task.name for task in tasks]
        tasks = [task for task in tasks if task.name == source.task]
        if not tasks:
            raise DataError(
                f"{source.path}: no task is called {source.task!r}; found {listed(names, 5)}."
            )
    prompts = TaskPrompts(tasks, source.forms, source.shots, queries)
    if not prompts.chunks:
        raise DataError(
            f"{source.path}: no task can be asked. A task needs a definition, or enough instances "
            "for samples besides those asked; `forms` and `shots` say which of these are used."
        )

    def group(index: int, generator: np.random.Generator) -> Group:
        system, pairs = prompts.draw(index, Random(int(generator.integers(1 << 62))))
        return Group(system, pairs, index)

    def dataset(seed: int) -> grain.MapDataset:
        order = grain.MapDataset.source(range(len(prompts.chunks))).seed(seed).shuffle()
        return order.random_map(group).repeat()

    notes = [skipped_note(source, skipped), prompts.note]
    return LoadedSource(dataset, prompts.places, "\n".join(filter(None, notes)))


# The kind itself, or `module:attribute` if it is defined in a package above this one. `text` has no
# prompts and so no groups: `documents` reads it.
KINDS: dict[str, SourceKind | str] = {
    "instruction": SourceKind(_instruction),
    "choices": SourceKind(_choices),
    "tasks": SourceKind(_tasks),
    "synthetic": "lorage_jax.world.source:SYNTHETIC",
}
