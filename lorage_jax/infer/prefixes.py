"""Prefixes: what a model has read before a row's tokens, kept as keys and values.

A soft prompt, a trained prefix or a system prompt in context is read once; all questions under it
then start after its slots, in the same programs as without.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lorage_jax.buckets import bucket, left_pad
from lorage_jax.data.templates import common_length
from lorage_jax.errors import ConfigError
from lorage_jax.files.journal import request_key
from lorage_jax.models.bits import program_params
from lorage_jax.models.cache import Past
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.model import Model

BATCH_ROWS = 8  # texts that are read at once


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of M slots in front of a row's tokens, as they lie in a model's cache.

    Attributes:
        k, v: of every layer.
        identity: a hash of all that decides them, besides the model.
        positions: the position of each slot; a row's tokens go on after the last one.
        tokens: ids that the slots hold, if any. Such rows are given whole, and as many of their
            first tokens as agree with these are not read again.
    """

    k: Float[Array | np.ndarray, "L M K H"]
    v: Float[Array | np.ndarray, "L M K H"]
    identity: str
    positions: Int[np.ndarray, "M"]
    tokens: tuple[int, ...] = ()

    @property
    def slots(self) -> int:
        """The number of slots, M."""
        return self.k.shape[1]

    @property
    def length(self) -> int:
        """Positions that are taken before a row's own tokens; 0 if the row has them itself."""
        return 0 if self.tokens else int(self.positions[-1]) + 1

    def shared(self, row: Sequence[int]) -> int:
        """The number of a row's first tokens that the slots hold; the row's last is always read."""
        return max(0, min(common_length(self.tokens, row), len(row) - 1))


def read_tokens(model: Model, texts: Sequence[Sequence[int]]) -> list[Prefix]:
    """The prefix of each text of token ids, read once.

    Raises ConfigError for an empty text or one that leaves no room in the model's context.
    """
    made = []
    for begin in range(0, len(texts), BATCH_ROWS):
        batch = texts[begin : begin + BATCH_ROWS]
        for row in batch:
            if not 0 < len(row) < model.config.max_positions:
                raise ConfigError(
                    f"a prompt has {len(row)} tokens; the model's context of "
                    f"{model.config.max_positions} must hold it and a question."
                )
        k, v, _ = _read(model, batch, None, None)
        for i, row in enumerate(batch):
            own = slice(k.shape[2] - len(row), None)
            name = request_key("tokens", np.asarray(row, np.int32).tobytes())
            made.append(Prefix(k[:, i, own], v[:, i, own], name, np.arange(len(row)), tuple(row)))
    return made


def read_vectors(model: Model, vectors: Float[Array | np.ndarray, "M D"]) -> Prefix:
    """The prefix of a soft prompt: vectors instead of embedded tokens."""
    vectors = jnp.asarray(vectors, jnp.float32)
    k, v, _ = _read(model, [[]], vectors, None)
    count = len(vectors)
    name = request_key("vectors", np.asarray(vectors).tobytes())
    return Prefix(k[:, 0, -count:], v[:, 0, -count:], name, np.arange(count))


def read_suffix(
    model: Model,
    texts: Sequence[Sequence[int]],
    vectors: Float[Array | np.ndarray, "M D"],
    fronts: Float[np.ndarray, "P F D"] | None = None,
) -> tuple[list[Prefix], Float[np.ndarray, "P M D"]]:
    """Reads texts, each followed by the same vectors, and after F vectors of its own, if given.

    Returns the keys and values of the vectors' slots, at their positions after each text, and
    their hidden states after the final norm, float32. Raises ConfigError for a text that leaves no
    room in the model's context.
    """
    made, hidden, count = [], [], len(vectors)
    vectors = jnp.asarray(vectors, jnp.float32)
    lead = 0 if fronts is None else fronts.shape[1]
    context, room = model.config.max_positions, model.config.max_positions - lead - count
    key = request_key("suffix", np.asarray(vectors).tobytes())
    for begin in range(0, len(texts), BATCH_ROWS):
        batch = texts[begin : begin + BATCH_ROWS]
        for row in batch:
            if len(row) >= room:
                raise ConfigError(
                    f"a prompt has {len(row)} tokens; the model reads fewer than {room} (context "
                    f"{context} less {lead + count} vectors). Shorten the prompt."
                )
        own = None if fronts is None else fronts[begin : begin + BATCH_ROWS]
        k, v, states = _read(model, batch, vectors, own)
        hidden.append(np.asarray(states, np.float32)[: len(batch)])
        for i, row in enumerate(batch):
            front = () if own is None else (np.asarray(own[i]).tobytes(),)
            name = request_key(key, np.asarray(row, np.int32).tobytes(), *front)
            at = lead + len(row) + np.arange(count)
            made.append(Prefix(k[:, i, -count:], v[:, i, -count:], name, at))
    return made, np.concatenate(hidden)


def _read(
    model: Model,
    rows: Sequence[Sequence[int]],
    vectors: Float[Array, "M D"] | None,
    fronts: Float[np.ndarray, "B F D"] | None,
) -> tuple[Array, Array, Array]:
    """Keys and values [L, B, F + S + M, K, H] of padded rows and vectors; the latter's states."""
    longest = max(map(len, rows))
    tokens, mask = left_pad(rows, bucket(longest, per_octave=4) if longest else 0)
    return _compiled_read(model.config, program_params(model.params), tokens, mask, vectors, fronts)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_read(config, params, tokens, mask, vectors, fronts):
    length = tokens.shape[1]
    output = Decoder(config).apply(
        {"params": params}, tokens, mask, prefix=fronts, suffix=vectors, head=False, keys=True
    )
    assert output.past is not None
    return output.past.k, output.past.v, output.hidden[:, length:]


def past_of(fronts: Sequence[tuple[Prefix, int]]) -> Past:
    """The prefixes of B rows as one `Past`, padded to a bucketed number of slots.

    Each comes with the number of slots that the row uses, if the prefix holds tokens.
    """
    prefixes = [prefix for prefix, _ in fronts]
    distinct = list({id(one): one for one in prefixes}.values())
    index = {id(one): i for i, one in enumerate(distinct)}
    size = bucket(max(one.slots for one in distinct), per_octave=4)

    def stack(name: str) -> Array:
        layers, _, heads, width = distinct[0].k.shape
        first = np.asarray(getattr(distinct[0], name))
        out = np.zeros((layers, len(distinct), size, heads, width), first.dtype)
        for i, one in enumerate(distinct):
            out[:, i, : one.slots] = np.asarray(getattr(one, name))
        which = np.asarray([index[id(one)] for one in prefixes])
        return jnp.take(jnp.asarray(out), which, axis=1)

    valid = np.zeros((len(prefixes), size), bool)
    positions = np.zeros((len(prefixes), size), np.int32)
    for i, (one, count) in enumerate(fronts):
        valid[i, : count if one.tokens else one.slots] = True
        positions[i, : one.slots] = one.positions
    return Past(stack("k"), stack("v"), jnp.asarray(valid), jnp.asarray(positions))


def unread_part(
    prefixes: Sequence[Prefix], rows: Sequence[Sequence[int]]
) -> tuple[list[Sequence[int]], Past]:
    """The unread part of every row, and the past that precedes it."""
    fronts = [(one, one.shared(row)) for one, row in zip(prefixes, rows, strict=True)]
    return [row[n:] for row, (_, n) in zip(rows, fronts, strict=True)], past_of(fronts)
