"""The beginning that many contexts have in common, read once instead of in every row."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from lorage_jax.data.templates import common_length
from lorage_jax.infer.prefixes import Prefix, read_tokens
from lorage_jax.models.model import Model

SHORTEST = 64  # tokens of a beginning that is worth keeping
FEWEST = 8  # contexts that must have it


def common_beginnings(contexts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """The longest common beginning of each group of contexts, and the indices of the group.

    Contexts of token ids are of one group if their first SHORTEST tokens agree, such as the
    questions of a task under the same solved samples. A context belongs to none if it is not longer
    than that, if fewer than FEWEST different ones are like it, or if less than half of their tokens
    are common: what stands in front then costs more than it saves.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, context in enumerate(contexts):
        if len(context) > SHORTEST:
            groups.setdefault(context[:SHORTEST], []).append(i)
    found = {}
    for group in groups.values():
        distinct = {contexts[i] for i in group}
        if len(distinct) >= FEWEST:
            first, last = min(distinct), max(distinct)  # all others lie between these two
            length = common_length(first, last)
            if 2 * length * len(distinct) >= sum(map(len, distinct)):
                found[first[:length]] = group
    return found


def read_beginnings(
    model: Model, contexts: Sequence[tuple[int, ...]], asked: Sequence[int]
) -> list[Prefix | None]:
    """The prefix of each context's `common_beginnings`, or None, in the order of the contexts.

    Only those of the contexts with the indices `asked` are read, and none with a model whose
    weights are spread over several processes.
    """
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(model.params)):
        return [None] * len(contexts)
    wanted = set(asked)
    groups = {
        start: group
        for start, group in common_beginnings(contexts).items()
        if not wanted.isdisjoint(group)
    }
    starts = [start[: model.config.max_positions - 1] for start in groups]
    prefixes: list[Prefix | None] = [None] * len(contexts)
    for prefix, group in zip(read_tokens(model, starts), groups.values(), strict=True):
        for i in group:
            prefixes[i] = prefix
    return prefixes
