"""Sources to an endless, seeded, resumable stream of batches (grain).

Every group is a function of (seed, index), few-shot draws included; the iterator's state is
one number, and restoring it continues bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

import grain

from lorage_jax.config import DataConfig
from lorage_jax.data.batches import Batch, Encoder, Group
from lorage_jax.data.sources import LoadedSource, load_source
from lorage_jax.errors import DataError


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
        """The origin of a number in `group_ids`: `file:line` of its first row."""
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
