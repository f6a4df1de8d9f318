"""The endless, seeded, resumable stream of training batches (grain).

Every group is a function of (seed, index), few-shot draws included. The iterator's state is one
number; restoring it continues the stream bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import grain
import numpy as np

from lorage_jax.config import DataConfig
from lorage_jax.data.batches import Batch, Encoder
from lorage_jax.data.shown import ShownEncoder
from lorage_jax.data.sources import LoadedSource, load_source, seeded
from lorage_jax.data.templates import TemplateKind, chosen_kind
from lorage_jax.errors import DataError


class Batches:
    """An endless iterable of batches (see `Encoder.batch`).

    `iter(...)` returns a grain iterator: `get_state()` gives JSON values, `set_state(...)` resumes.
    `note` says what was left out of the data; empty if nothing was.
    """

    def __init__(
        self,
        groups: grain.MapDataset,
        places: Sequence[Sequence[str]],
        encoder: Encoder,
        note: str = "",
    ):
        self.groups, self.encoder, self.note = groups, encoder, note
        self._places, self._ends = places, list(accumulate(map(len, places)))
        rows = encoder.config.prompts_per_batch
        self._batches = groups.map(encoder.tokens).batch(
            rows, drop_remainder=True, batch_fn=encoder.batch
        )

    def __iter__(self) -> Iterator[Batch]:
        # One thread: tokenizers are not thread-safe, and a step takes longer than making a batch.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(self._batches.to_iter_dataset(options))

    def describe(self, group_id: int) -> str:
        """The origin of an index in `group_ids`: `file:line` of the group's first row.

        Raises DataError if there is no such group.
        """
        source = self._source(group_id)
        return self._places[source][group_id - self._ends[source]]

    def with_sources(self, batch: Batch) -> Batch:
        """A batch of the host with its `sources`."""
        assert batch.group_ids is not None
        numbers = np.array([[self._source(int(one))] for one in batch.group_ids], np.int32)
        return batch.replace(sources=tuple(np.split(numbers, len(batch.queries))))

    def _source(self, group_id: int) -> int:
        """The number of the source of a group."""
        found = next((i for i, end in enumerate(self._ends) if 0 <= group_id < end), None)
        if found is None:
            raise DataError(f"there is no group {group_id}; the data end before it.")
        return found


def make_dataset(
    config: DataConfig,
    cloud_tokenizer: Any,
    edge_tokenizer: Any,
    seed: int,
    template: TemplateKind | None = None,
    in_context: bool = False,
    shown: bool = False,
) -> Batches:
    """Builds the training data of a run, by default in the turns of `config.template`.

    `in_context`: the edge, too, reads the system prompt, in front of each query. `shown`: it does
    as a teacher, beside the queries without it.

    Every process of a pod builds the same batches (shapes included) and feeds its own rows.

    Raises DataError, before the first batch, if a file is missing or a row is malformed.
    """
    sources = [load_source(source, config.queries_per_prompt) for source in config.sources]
    # Copies, because another thread may be using the caller's tokenizers.
    template = template or chosen_kind(config.template, cloud_tokenizer, edge_tokenizer)
    pair = copy.deepcopy(cloud_tokenizer), copy.deepcopy(edge_tokenizer)
    kind = ShownEncoder if shown else Encoder
    encoder = kind(config, *pair, template, in_context)
    groups = mix(sources, [source.weight for source in config.sources], seed)
    note = "\n".join(source.note for source in sources if source.note)
    return Batches(groups, [source.places for source in sources], encoder, note)


def load_groups(config: DataConfig, seed: int) -> grain.MapDataset:
    """The endless mixture of `Group`s of a run, as text. Errors as in `make_dataset`."""
    sources = [load_source(source, config.queries_per_prompt) for source in config.sources]
    return mix(sources, [source.weight for source in config.sources], seed)


def mix(sources: Sequence[LoadedSource], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Mixes the groups of all sources by weight; indices are numbered through all sources."""
    parts = seeded(sources, seed)
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
