"""The built-in tasks as training data: the `synthetic` kind of `data.sources`."""

from __future__ import annotations

from random import Random

import grain
import numpy as np

from lorage_jax.config import Source
from lorage_jax.data.batches import Group
from lorage_jax.data.sources import LoadedSource, SourceKind
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import tools as world_tools

# Prompts per epoch of an unlimited source; every epoch draws new ones.
SYNTHETIC_EPOCH = 1 << 16


def load_synthetic(source: Source, queries: int) -> LoadedSource:
    """Prompts of the family `source.name` and their queries, at most `queries` per prompt.

    With `source.limit` these are that many fixed prompts, otherwise a new one for every index and
    epoch. DataError for an unknown split or family.
    """
    # A wrong name fails here.
    world_prompts.draw_prompt(source.split, Random(0), source.name, source.task)
    count = source.limit or SYNTHETIC_EPOCH

    def group(index: int, generator: np.random.Generator) -> Group:
        rng = Random(index if source.limit else int(generator.integers(1 << 62)))
        records = world_prompts.draw_group(source.split, queries, rng, source.name, source.task)
        pairs = tuple((record.user, record.target) for record in records)
        return Group(records[0].system, pairs, index)

    def dataset(seed: int) -> grain.MapDataset:
        indices = grain.MapDataset.source(range(count)).seed(seed).shuffle()
        return indices.random_map(group).repeat()

    return LoadedSource(dataset, [f"synthetic/{source.split}:{i}" for i in range(count)])


def versions() -> list[int]:
    """The versions of the prompts and of the tool library, which change when drawn data do."""
    return [world_prompts.VERSION, world_tools.VERSION]


def task_of(prompt: str) -> str | None:
    """The name of a built-in prompt's task; None for any other text."""
    found = world_prompts.find(prompt)
    return None if found is None else found.task


SYNTHETIC = SourceKind(load_synthetic, versions, task_of)
