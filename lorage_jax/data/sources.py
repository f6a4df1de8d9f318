"""Loads a `Source` of any kind as groups: a system prompt with its queries.

`KINDS` names the loader of each kind. The built-in tasks come from `world/`, a package above this
one in the import order, so that kind is registered by its address and imported on first use.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grain
import numpy as np

from lorage_jax.config import Source
from lorage_jax.data.batches import Group
from lorage_jax.data.records import Record, Row, read_bytes, read_rows, to_record
from lorage_jax.data.task_table import get_task
from lorage_jax.data.tasks import sample_bank, task_prompt
from lorage_jax.data.templates import TEMPLATE_VERSION
from lorage_jax.errors import DataError
from lorage_jax.fields import to_dict

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True)
class LoadedSource:
    """One source in memory: its endless groups, `dataset(seed)`, and the origin of group i."""

    dataset: Callable[[int], grain.MapDataset]
    places: Sequence[str]


@dataclass(frozen=True)
class SourceKind:
    """How sources of one kind become groups.

    `load(source, queries)` reads and checks one source, for groups of at most `queries` queries.
    `versions` is set if the data are drawn by code instead of read from files: it returns the
    versions of that code, which become part of every data fingerprint.
    """

    load: Callable[[Source, int], LoadedSource]
    versions: Callable[[], list[int]] | None = None


def load_source(source: Source, queries: int) -> LoadedSource:
    """Reads and checks one source, for groups of at most `queries` queries.

    Raises DataError for missing or damaged files and for an unknown task, family or split.
    """
    return source_kind(source.kind).load(source, queries)


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


def data_fingerprint(sources: Sequence[Source]) -> str:
    """SHA-256 of the sources' fields, the content of local files (not their paths) and versions.

    The versions are those of the templates and of all code that draws data.
    """
    described = [to_dict(source) for source in sources]
    kinds = {name: source_kind(name) for name in KINDS}
    drawn = {name: kind.versions() for name, kind in kinds.items() if kind.versions is not None}
    for source, values in zip(sources, described, strict=True):
        path = None if source.kind in drawn else local_file(source)
        if path:
            values["path"] = hashlib.sha256(read_bytes(path)).hexdigest()
    versions = [TEMPLATE_VERSION, *(version for one in drawn.values() for version in one)]
    text = json.dumps([described, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_rows(source: Source) -> list[tuple[str, Row]]:
    """(place, row) for every row of a source: a file, a split in a folder, or a Hub data set.

    Raises DataError if it cannot be loaded.
    """
    path = local_file(source)
    return read_rows(path) if path else _hub_rows(source)


def local_file(source: Source) -> Path | None:
    """The file that a source names; in a folder, the file named after the split.

    Returns None if `source.path` names a data set of the Hub. Raises DataError if a folder has no
    file of that name.
    """
    path = Path(source.path)
    if path.is_dir():
        found = [path / f"{source.split}{suffix}" for suffix in SUFFIXES]
        file = next((file for file in found if file.is_file()), None)
        if file is None:
            raise DataError(f"{path}: holds no {source.split}.jsonl, .json or .gz of these.")
        return file
    return path if path.is_file() or path.name.endswith(SUFFIXES) else None


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
    rows = source_rows(source)
    records = [(place, to_record(row, place)) for place, row in rows]
    if source.needs_input:
        records = [(place, record) for place, record in records if record.user.strip()]
    if not records:
        raise DataError(f"{source.path}: no row has an input, and needs_input is set.")
    by_system: dict[str, list[tuple[str, Record]]] = {}
    for place, record in records[: source.limit]:
        by_system.setdefault(record.system, []).append((place, record))
    groups, places = [], []
    for system, members in by_system.items():
        for at in range(0, len(members), queries):
            chunk = members[at : at + queries]
            pairs = tuple((record.user, record.target) for _, record in chunk)
            groups.append(Group(system, pairs, len(groups)))
            places.append(chunk[0][0])
    return LoadedSource(
        lambda seed: grain.MapDataset.source(groups).seed(seed).shuffle().repeat(), places
    )


def _choices(source: Source, queries: int) -> LoadedSource:
    """Groups Q items of the task under a freshly drawn few-shot prompt; each once per epoch."""
    rows = source_rows(source)
    task = get_task(source.name)
    rows = rows[: source.limit]
    items = [task.to_example(row, place) for place, row in rows]
    bank = sample_bank(items)

    def group(indices: list[int], generator: np.random.Generator) -> Group:
        rng = Random(int(generator.integers(1 << 62)))
        asked = [items[i] for i in indices]
        system = task_prompt(task, bank, asked, rng.randint(*source.shots), rng)
        return Group(system, tuple((e.user, e.target) for e in asked), indices[0])

    def dataset(seed: int) -> grain.MapDataset:
        order = grain.MapDataset.source(range(len(items))).seed(seed).shuffle()
        return order.batch(queries, batch_fn=list).random_map(group).repeat()

    return LoadedSource(dataset, [place for place, _ in rows])


# The kind itself, or `module:attribute` if it is defined in a package above this one. `text` has no
# prompts and so no groups: `documents` reads it.
KINDS: dict[str, SourceKind | str] = {
    "instruction": SourceKind(_instruction),
    "choices": SourceKind(_choices),
    "synthetic": "lorage_jax.world.source:SYNTHETIC",
}
