"""Batches for distillation: each query again, after its system prompt, for the teacher to read.

The student's rows are those of `Encoder.batch`. The teacher's have the same layout, whole or
packed; `partners` gives, for each slot of the student that predicts a target, the teacher's slot
that predicts the same token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lorage_jax.data.batches import Batch, Encoder, Group, Rows, TokenGroup
from lorage_jax.data.templates import Conversation


@dataclass(frozen=True)
class ShownGroup(TokenGroup):
    """A `TokenGroup` and its queries once more, each after the system prompt."""

    shown: tuple[Conversation, ...] = ()

    def as_shown(self) -> TokenGroup:
        """The group of the teacher."""
        return TokenGroup(self.prompt, list(self.shown), self.index, self.truncated, self.system)


@dataclass(frozen=True)
class ShownEncoder(Encoder):
    """An `Encoder` whose batches also have `shown` and `partners`.

    A text counts as truncated once, where student and teacher read different parts of it.
    """

    @functools.cached_property
    def teacher(self) -> Encoder:
        """The encoder of the teacher's rows."""
        return Encoder(self.config, self.cloud, self.edge, self.template, in_context=True)

    def most_shapes(self, reads_prompts: bool = True) -> int:
        """The most shapes that batches can have: any of the student's with any of the teacher's."""
        return super().most_shapes(reads_prompts) * self.teacher.most_shapes(reads_prompts=False)

    def tokens(self, group: Group) -> ShownGroup:
        """Token ids of a group for both, cut to the configured lengths. Errors as in `Encoder`."""
        bare, told = super().tokens(group), self.teacher.tokens(group)
        cut = max(bare.truncated, told.truncated)
        return ShownGroup(
            bare.prompt, bare.queries, bare.index, cut, bare.system, tuple(told.queries)
        )

    def batch(self, groups: Sequence[TokenGroup]) -> Batch:
        """The batch of `Encoder.batch` with `shown` and `partners` per chunk of queries."""
        both = [group for group in groups if isinstance(group, ShownGroup)]
        assert len(both) == len(groups), "made by `tokens` of this encoder"
        batch = super().batch(both)
        told = self.teacher.batch([group.as_shown() for group in both])
        # Collating numbers instead of ids shows where each target lands, however rows are filled.
        ours, theirs = numbered(both)
        chunks = zip(super().batch(ours).queries, self.teacher.batch(theirs).queries, strict=True)
        return batch.replace(
            shown=tuple(rows.replace(loss_mask=None, owner=None) for rows in told.queries),
            partners=tuple(partners(*pair) for pair in chunks),
        )


def numbered(groups: Sequence[ShownGroup]) -> tuple[list[TokenGroup], list[TokenGroup]]:
    """The groups of student and teacher, with numbers from 1 in place of token ids.

    The two tokens of a pair have the same number, which no others have, and the loss mask is True
    at them alone.
    """
    ours, theirs, count = [], [], 0
    for group in groups:
        bare, told = [], []
        for query, shown in zip(group.queries, group.shown, strict=True):
            left, right = [0] * len(query.tokens), [0] * len(shown.tokens)
            for i, j in paired(query, shown):
                count += 1
                left[i] = right[j] = count
            bare.append(Conversation(left, [n > 0 for n in left]))
            told.append(Conversation(right, [n > 0 for n in right]))
        ours.append(dataclasses.replace(group, queries=bare))
        theirs.append(dataclasses.replace(group.as_shown(), queries=told))
    return ours, theirs


def paired(query: Conversation, shown: Conversation) -> Iterator[tuple[int, int]]:
    """The places of the targets that both have, in `query` and in `shown`.

    A chat loses its first exchanges when it is cut, an answer its end. So answers are paired from
    the last, and their tokens from the first, as long as they are the same.
    """
    for ours, theirs in zip(answers(query)[::-1], answers(shown)[::-1], strict=False):
        for i, j in zip(ours, theirs, strict=False):
            if query.tokens[i] != shown.tokens[j]:
                break
            yield i, j


def answers(chat: Conversation) -> list[range]:
    """The places of each answer's targets."""
    edges = np.flatnonzero(np.diff([0, *map(int, chat.loss_mask), 0]))
    return [range(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def partners(ours: Rows, theirs: Rows) -> Int[np.ndarray, "R T"]:
    """`Batch.partners` of a chunk whose rows hold the numbers of `numbered`."""
    here, there = _numbers(ours), _numbers(theirs)
    places = np.full(1 + max(int(here.max()), int(there.max())), -1, np.int32)
    (taken,) = np.nonzero(there.reshape(-1))
    places[there.reshape(-1)[taken]] = taken - 1  # the slot before the token predicts it
    found = np.full(here.shape, -1, np.int32)
    found[:, :-1] = places[here[:, 1:]]
    return found


def _numbers(rows: Rows) -> Int[np.ndarray, "R T"]:
    """The numbers of targets, 0 at all other slots."""
    assert rows.loss_mask is not None
    return np.where(np.asarray(rows.loss_mask), np.asarray(rows.tokens), 0)


def with_shown(batch: Batch, longer: Batch) -> Batch:
    """The abstract `batch` with `shown` as long as the queries of `longer`, and `partners`."""
    return batch.replace(
        shown=tuple(rows.replace(loss_mask=None, owner=None) for rows in longer.queries),
        partners=tuple(rows.tokens for rows in batch.queries),
    )
