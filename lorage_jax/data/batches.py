"""Turns groups of examples into batches: token ids, masks, padding and shape buckets.

P prompts with Q queries each make B = P x Q rows, prompt-major: row = p * Q + q.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.buckets import bucket, bucket_sizes
from lorage_jax.config import DataConfig
from lorage_jax.data.packing import PER_OCTAVE, pack
from lorage_jax.data.templates import (
    NEWEST,
    Conversation,
    Template,
    TemplateKind,
    fit_chat,
    fit_context,
    fit_prompt,
)
from lorage_jax.errors import ConfigError, DataError


class Rows(flax.struct.PyTreeNode):
    """Texts as R rows of T token ids: numpy arrays on the host, JAX arrays on the devices.

    On the devices, every array has a leading axis of micro-batches. Absent arrays are None, which
    selects the compiled program. `text` and `positions` are present if rows are packed.

    Attributes:
        tokens: token ids; any valid id where `mask` is False.
        mask: True at real tokens.
        loss_mask: True at tokens to predict: those of answers, and the ends of their turns.
        text: index of the slot's text within its row.
        positions: position of the slot within its text.
        owner: for packed queries, the index of the prompt of each of a row's k texts.
    """

    tokens: Int[Array, "*A R T"]
    mask: Bool[Array, "*A R T"]
    loss_mask: Bool[Array, "*A R T"] | None = None
    text: Int[Array, "*A R T"] | None = None
    positions: Int[Array, "*A R T"] | None = None
    owner: Int[Array, "*A R k"] | None = None


class Batch(flax.struct.PyTreeNode):
    """The rows of one step, in chunks, each padded to its own length.

    Attributes:
        prompts: the cloud's rows, padded on the left; empty for methods that read no prompts.
        queries: the edge's rows, padded on the right; chunk i belongs to prompt chunk i.
        sources: the number of each prompt's source, [p, 1] per chunk, for methods that ask.
        vectors: a vector for each prompt, per chunk, for methods that ask.
        shown: the queries after their system prompts, per chunk, for a teacher (`data.shown`).
        partners: for each slot of `queries`, the slot of `shown` that predicts the same target, as
            an index into all slots of the chunk's rows; -1 if there is none.
        group_ids: origin of the rows, which `describe` of the data set looks up; host only.
        texts: the system prompts, in the order of the chunks; host only.
        truncated: number of texts that were cut; host only.
    """

    prompts: tuple[Rows, ...]
    queries: tuple[Rows, ...]
    group_ids: Int[np.ndarray, "P"] | None = None
    truncated: int | None = None
    sources: tuple[Int[Array, "*A p 1"], ...] = ()
    vectors: tuple[Float[Array, "*A p w"], ...] = ()
    shown: tuple[Rows, ...] = ()
    partners: tuple[Int[Array, "*A R T"], ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Rows, ...]:
        """All chunks: those of prompts, then those of queries."""
        return (*self.prompts, *self.queries)


@dataclass(frozen=True)
class Group:
    """One system prompt and at most Q queries. `index` is its number in the data.

    A query is (user, target), or all texts of a chat: user and assistant in alternation.
    """

    system: str
    queries: tuple[tuple[str, ...], ...]
    index: int


@dataclass(frozen=True)
class TokenGroup:
    """A `Group` as token ids; `truncated` texts were cut. `system` is the whole prompt."""

    prompt: list[int]
    queries: list[Conversation]
    index: int
    truncated: int
    system: str = ""


@dataclass(frozen=True)
class Encoder:
    """Tokenizes groups and collates batches, for one pair of cloud and edge tokenizers.

    With `in_context`, each query follows its system prompt, of which the edge reads at most
    `max_prompt_tokens`.
    """

    config: DataConfig
    cloud: Any
    edge: Any
    template: TemplateKind = NEWEST
    in_context: bool = False

    @property
    def longest_query(self) -> int:
        """The most tokens of the edge in one text: input, target and, in context, the prompt."""
        return self.config.max_query_tokens + self.in_context * self.config.max_prompt_tokens

    def most_shapes(self, reads_prompts: bool = True) -> int:
        """The most shapes that batches can have, each of which needs a compiled program."""
        config = self.config
        each, octave = config.prompts_per_row, 1 if config.packed_rows is None else PER_OCTAVE
        texts = 1 if config.packed_rows is None else each * config.queries_per_prompt
        prompts = len(bucket_sizes(config.min_bucket, each * config.max_prompt_tokens, octave))
        queries = len(bucket_sizes(config.min_bucket, texts * self.longest_query, octave))
        chunks = config.prompt_chunks  # sorted by the lengths of their prompts
        return queries**chunks * (math.comb(prompts + chunks - 1, chunks) if reads_prompts else 1)

    @functools.cached_property
    def reads(self) -> Template:
        """The cloud's template."""
        return self.template.on(self.cloud)

    @functools.cached_property
    def turns(self) -> Template:
        """The edge's template."""
        return self.template.on(self.edge)

    def __post_init__(self):
        frame = len(self.turns.prompt("x"))
        if self.config.max_query_tokens <= frame:
            raise ConfigError(
                f"max_query_tokens is {self.config.max_query_tokens}; the template alone takes "
                f"{frame} tokens of the edge. Raise it."
            )
        if self.config.assistant_turns == "all" and not self.turns.keeps_answers:
            raise ConfigError(
                "assistant_turns is all, but the edge's chat template writes an earlier answer "
                "differently once others follow, so that only the last can be learnt. Use last."
            )

    def tokens(self, group: Group) -> TokenGroup:
        """Token ids of one group, cut to the configured lengths.

        Raises DataError if a text has no tokens.
        """
        prompt, cut = fit_prompt(self.reads, group.system, self.config.max_prompt_tokens)
        system, shortened = None, False
        if self.in_context:
            system, shortened = fit_context(self.turns, group.system, self.config.max_prompt_tokens)
        most, learnt = self.longest_query, self.config.assistant_turns
        fitted = [fit_chat(self.turns, query, most, learnt, system) for query in group.queries]
        queries = [query for query, _ in fitted]
        if not prompt or not all(any(q.loss_mask) and not q.loss_mask[0] for q in queries):
            raise DataError(
                f"group {group.index}, whose prompt begins {group.system[:60]!r}, has a text "
                "without tokens: the tokenizer knows none of its characters. Expected texts that "
                "it knows; remove this one, or use models with another tokenizer."
            )
        cut += shortened + sum(cut for _, cut in fitted)
        return TokenGroup(prompt, queries, group.index, cut, group.system)

    def batch(self, groups: Sequence[TokenGroup]) -> Batch:
        """Collates P groups into numpy arrays: chunks of prompts [p, S] and queries [p x Q, T].

        Groups with fewer than Q queries are filled up with rows without loss. With several chunks,
        groups are sorted by the lengths of their prompts. Packed batches have one chunk of R rows,
        in which prompts are numbered in order.
        """
        if self.config.packed_rows is not None:
            return self._packed(groups, self.config.packed_rows)
        chunks = self._chunks(groups)
        prompts = tuple(self._prompts(chunk) for chunk in chunks)
        queries = tuple(self._queries(chunk) for chunk in chunks)
        return _collated(prompts, queries, [group for chunk in chunks for group in chunk])

    def _packed(self, groups: Sequence[TokenGroup], rows: int) -> Batch:
        config, each = self.config, self.config.prompts_per_row
        longest = each * config.max_prompt_tokens
        order, prompts = pack(
            [g.prompt for g in groups], rows, config.min_bucket, longest, pad_id(self.cloud)
        )
        groups, chats, owners = [groups[i] for i in order.flat], [], []
        filler = Conversation([pad_id(self.edge)], [False])
        for number, group in enumerate(groups):
            missing = config.queries_per_prompt - len(group.queries)
            chats += [*group.queries, *([filler] * missing)]
            owners += [number] * config.queries_per_prompt
        longest = each * config.queries_per_prompt * self.longest_query
        texts = [chat.tokens for chat in chats]
        order, queries = pack(texts, rows, config.min_bucket, longest, pad_id(self.edge))
        loss = np.zeros_like(queries["mask"])
        for row, members in enumerate(order):
            masks = [value for i in members for value in chats[i].loss_mask]
            loss[row, : len(masks)] = masks
        queries |= {"loss_mask": loss, "owner": np.array(owners, np.int32)[order]}
        return _collated((host_rows(**prompts),), (host_rows(**queries),), groups)

    def _chunks(self, groups: Sequence[TokenGroup]) -> list[Sequence[TokenGroup]]:
        """Chunks groups by prompt length, so that a long prompt pads only its own chunk."""
        count = self.config.prompt_chunks
        if count == 1:
            return [groups]
        groups, size = sorted(groups, key=lambda g: len(g.prompt)), len(groups) // count
        return [groups[i * size : (i + 1) * size] for i in range(count)]

    def _prompts(self, groups: Sequence[TokenGroup]) -> Rows:
        config = self.config
        s = padded_length(
            max(len(g.prompt) for g in groups), config.min_bucket, config.max_prompt_tokens
        )
        tokens = np.full((len(groups), s), pad_id(self.cloud), np.int32)
        mask = np.zeros((len(groups), s), bool)
        for p, group in enumerate(groups):
            tokens[p, s - len(group.prompt) :] = group.prompt
            mask[p, s - len(group.prompt) :] = True
        return host_rows(tokens=tokens, mask=mask)

    def _queries(self, groups: Sequence[TokenGroup]) -> Rows:
        config, per_prompt = self.config, self.config.queries_per_prompt
        longest = max(len(query.tokens) for group in groups for query in group.queries)
        t = padded_length(longest, config.min_bucket, self.longest_query)
        rows = len(groups) * per_prompt
        tokens = np.full((rows, t), pad_id(self.edge), np.int32)
        mask, loss = np.zeros((rows, t), bool), np.zeros((rows, t), bool)
        # A row without any key would be NaN, so filler rows keep one padding token.
        mask[:, 0] = True
        for p, group in enumerate(groups):
            for q, query in enumerate(group.queries):
                row, end = p * per_prompt + q, len(query.tokens)
                tokens[row, :end], loss[row, :end] = query.tokens, query.loss_mask
                mask[row, :end] = True
        return host_rows(tokens=tokens, mask=mask, loss_mask=loss)


def host_rows(**arrays: Any) -> Rows:
    """`Rows` of numpy arrays."""
    return Rows(**arrays)


def _collated(
    prompts: tuple[Rows, ...], queries: tuple[Rows, ...], groups: Sequence[TokenGroup]
) -> Batch:
    """A batch of the host, with the origin of its groups."""
    return Batch(
        prompts,
        queries,
        group_ids=np.array([group.index for group in groups], np.int64),
        truncated=sum(group.truncated for group in groups),
        texts=tuple(group.system for group in groups),
    )


def padded_length(length: int, smallest: int, largest: int) -> int:
    """The first of smallest, 2 x smallest, 4 x smallest, ..., largest that is >= `length`."""
    return min(bucket(length, smallest, per_octave=1), largest)


def pad_id(tokenizer: Any) -> int:
    """The token id used as padding; always masked, so any valid id will do.

    A pad token that was added to a tokenizer may have an id beyond the model's embeddings.
    """
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None and i < max(1, tokenizer.vocab_size))
