"""Sources to an endless, seeded, resumable stream of batches (grain).

Every group is a function of (seed, index), few-shot draws included; the iterator's state is
one number, and restoring it continues bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import grain
import numpy as np

from lorage_jax.config import DataConfig, Source
from lorage_jax.data.batches import Batch, Encoder, Group
from lorage_jax.data.records import Record, Row, read_bytes, read_rows, to_record
from lorage_jax.data.tasks import get_task, sample_bank, task_prompt
from lorage_jax.data.templates import TEMPLATE_VERSION
from lorage_jax.errors import DataError
from lorage_jax.fields import to_dict
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import tools as world_tools

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")

# Prompts per epoch of an unlimited synthetic source; every epoch draws new ones.
SYNTHETIC_EPOCH = 1 << 16


@dataclass(frozen=True)
class LoadedSource:
    """One source in memory. `dataset(seed)`: its groups without end; `places[i]` names group i."""

    dataset: Callable[[int], grain.MapDataset]
    places: Sequence[str]


class Batches:
    """Iterable over batches (see `Encoder.batch`), without end.

    `iter(...)` gives a grain iterator: `get_state()` is JSON-able, `set_state(...)` resumes.
    """

    def __init__(self, groups: grain.MapDataset, places: Sequence[Sequence[str]], encoder: Encoder):
        self.groups = groups
        self._places = places
        rows = encoder.config.prompts_per_batch
        self._batches = groups.map(encoder.tokens).batch(
            rows, drop_remainder=True, batch_fn=encoder.batch
        )

    def __iter__(self) -> Iterator[Batch]:
        # One thread: tokenizers are not safe to share, and a step takes longer than a batch.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(self._batches.to_iter_dataset(options))

    def describe(self, group_id: int) -> str:
        """Where a number in `group_ids` comes from: `file:line` of its first row."""
        for places, end in zip(self._places, accumulate(map(len, self._places)), strict=True):
            if 0 <= group_id < end:
                return places[group_id - end]
        raise DataError(f"there is no group {group_id}; the data end before it.")


def make_dataset(
    config: DataConfig, cloud_tokenizer: Any, edge_tokenizer: Any, seed: int
) -> Batches:
    """The training data of a run. DataError for every fault of the files, before any batch.

    Every process of a pod builds the same batches (shapes included) and feeds its own rows.
    """
    sources = [load_source(source, config.queries_per_prompt) for source in config.sources]
    # Copies: another thread may use the caller's tokenizers meanwhile.
    encoder = Encoder(config, copy.deepcopy(cloud_tokenizer), copy.deepcopy(edge_tokenizer))
    groups = mix(sources, [source.weight for source in config.sources], seed)
    return Batches(groups, [source.places for source in sources], encoder)


def load_groups(config: DataConfig, seed: int) -> grain.MapDataset:
    """The endless mixed `Group`s of a run, without tokenizers."""
    sources = [load_source(source, config.queries_per_prompt) for source in config.sources]
    return mix(sources, [source.weight for source in config.sources], seed)


def mix(sources: Sequence[LoadedSource], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Groups of all sources in proportion to the weights; indices count through the sources."""
    parts, start = [], 0
    for number, source in enumerate(sources):
        source_seed = Random(f"{seed}/{number}").getrandbits(32)
        parts.append(source.dataset(source_seed).map(_Shift(start)))
        start += len(source.places)
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


@dataclass(frozen=True)
class _Shift:
    start: int

    def __call__(self, group: Group) -> Group:
        return Group(group.system, group.queries, group.index + self.start)


def load_source(source: Source, queries: int) -> LoadedSource:
    """Read and check one source, for groups of at most `queries` queries."""
    if source.kind == "synthetic":
        return _synthetic(source, queries)
    rows = source_rows(source)
    load = _choices if source.kind == "choices" else _instruction
    return load(source, rows, queries)


def _instruction(source: Source, rows: list[tuple[str, Row]], queries: int) -> LoadedSource:
    """Rows grouped by identical system text, in chunks of Q; each row once per epoch."""
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


def _choices(source: Source, rows: list[tuple[str, Row]], queries: int) -> LoadedSource:
    """Q items of the task under a few-shot prompt drawn anew; each item once per epoch."""
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


def _synthetic(source: Source, queries: int) -> LoadedSource:
    """`limit` fixed prompts, or without a limit a new prompt for every index and epoch."""
    world_prompts.draw_prompt(source.split, Random(0), source.name)  # a wrong name fails here
    count = source.limit or SYNTHETIC_EPOCH

    def group(index: int, generator: np.random.Generator) -> Group:
        rng = Random(index if source.limit else int(generator.integers(1 << 62)))
        records = world_prompts.draw_group(source.split, queries, rng, source.name)
        pairs = tuple((record.user, record.target) for record in records)
        return Group(records[0].system, pairs, index)

    def dataset(seed: int) -> grain.MapDataset:
        indices = grain.MapDataset.source(range(count)).seed(seed).shuffle()
        return indices.random_map(group).repeat()

    return LoadedSource(dataset, [f"synthetic/{source.split}:{i}" for i in range(count)])


def source_rows(source: Source) -> list[tuple[str, Row]]:
    """(place, row) for every row of a file, of the split in a folder, or of a `datasets` name."""
    path = local_file(source)
    return read_rows(path) if path else _hub_rows(source)


def local_file(source: Source) -> Path | None:
    """The file a source names, in a folder the one called after the split; None: a Hub name."""
    path = Path(source.path)
    if path.is_dir():
        found = [path / f"{source.split}{suffix}" for suffix in SUFFIXES]
        file = next((file for file in found if file.is_file()), None)
        if file is None:
            raise DataError(f"{path}: holds no {source.split}.jsonl, .json or .gz of these.")
        return file
    return path if path.is_file() or path.name.endswith(SUFFIXES) else None


def _hub_rows(source: Source) -> list[tuple[str, Row]]:
    import datasets  # slow to import, and only needed here

    choices = source.kind == "choices"
    subset = (get_task(source.name).subset if choices else source.name) or None
    try:
        rows = datasets.load_dataset(source.path, subset, split=source.split)
    except Exception as error:  # the library raises a dozen kinds, offline and on wrong names
        raise DataError(
            f"{source.path}: is no file here, and as a data set of the Hub "
            f"(configuration {subset}, split {source.split}) it cannot be loaded: {error}"
        ) from None
    name = f"{source.path}[{source.split}]"
    return [(f"{name} row {number}", dict(row)) for number, row in enumerate(rows)]


def data_fingerprint(sources: Sequence[Source]) -> str:
    """sha256 of what sources give: their fields, templates, bytes of local files, not paths."""
    described = [to_dict(source) for source in sources]
    for source, values in zip(sources, described, strict=True):
        path = None if source.kind == "synthetic" else local_file(source)
        if path:
            values["path"] = hashlib.sha256(read_bytes(path)).hexdigest()
    versions = [TEMPLATE_VERSION, world_prompts.VERSION, world_tools.VERSION]
    text = json.dumps([described, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
