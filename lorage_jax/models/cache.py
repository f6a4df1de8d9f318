"""The key/value cache of decoding, and what stands in it before the first token."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt16

from lorage_jax.config import ModelConfig
from lorage_jax.models.bits import stored


class Past(flax.struct.PyTreeNode):
    """Keys and values in front of the tokens of B rows, as if earlier tokens had left them.

    Attributes:
        k, v: rotated, where the model rotates, as in the cache; there, the heads are in front.
        valid: True at slots that the row has.
        positions: the position of each slot; a row's tokens go on after its last one.
        text: number of each slot's text within its row; None if every row holds one text.
    """

    k: Float[Array, "L B M K H"]
    v: Float[Array, "L B M K H"]
    valid: Bool[Array, "B M"]
    positions: Int[Array, "B M"]
    text: Int[Array, "B M"] | None = None

    @property
    def next_positions(self) -> Int[Array, "B 1"]:
        """The position of each row's next token."""
        return _next_positions(self.valid, self.positions)


class Cache(flax.struct.PyTreeNode):
    """Keys and values of earlier slots; the first `length` of the S slots are filled.

    `length` is one number for all rows, which are left-padded, or one per row. Rows with lengths
    of their own are right-padded: a row's next tokens take the place of its padding, so rows may
    start and end at any time.

    Keys and values in uint16 are the bits of bfloat16 numbers (`bits.py`).

    `valid` marks real tokens. `positions` of the slots are kept where they do not simply count the
    real tokens: after a `Past`. Windows then count positions, as there may be padding in between.

    The slots of a head lie together, as attention reads them, and the layers only read the cache:
    it is extended once after all of them. Otherwise every step of decoding would copy all of it.
    """

    k: Float[Array, "L B K S H"] | UInt16[Array, "L B K S H"]
    v: Float[Array, "L B K S H"] | UInt16[Array, "L B K S H"]
    valid: Bool[Array, "B S"]
    length: Int[Array, "*rows"]
    positions: Int[Array, "B S"] | None = None

    @property
    def next_positions(self) -> Int[Array, "B 1"]:
        """The position of each row's next token."""
        if self.positions is None:
            return jnp.sum(self.valid, axis=1, keepdims=True, dtype=jnp.int32)
        return _next_positions(self.valid, self.positions)

    def seen(self, positions: Int[Array, "B T"], window: int | None) -> Bool[Array, "B T S"]:
        """The mask of T new tokens over the slots, in layers with this window."""
        seen = self.valid[:, None, :]
        if window is None:
            return jnp.broadcast_to(seen, (*positions.shape, seen.shape[2]))
        if self.positions is not None:
            return seen & (self.positions[:, None, :] > positions[:, :, None] - window)
        asking = self._next_slots(positions.shape[1])[..., None]
        return seen & (jnp.arange(seen.shape[2]) > asking - window)

    def extended(self, new: Past) -> Cache:
        """The cache with T more slots per row; `new.valid` marks real tokens.

        Beyond the last slot nothing is written.
        """
        count = new.valid.shape[1]
        if self.length.ndim:
            assert self.positions is None, "rows with lengths of their own have nothing in front"
            rows, slots = jnp.arange(self.length.shape[0])[:, None], self._next_slots(count)

            def put(x: Array, values: Array) -> Array:
                values = stored(values, x.dtype).transpose(1, 2, 0, 3, 4)
                return x.at[:, rows, :, slots].set(values, mode="drop", unique_indices=True)

            return self.replace(
                k=put(self.k, new.k),
                v=put(self.v, new.v),
                valid=self.valid.at[rows, slots].set(new.valid, mode="drop"),
                length=self.length + jnp.sum(new.valid, axis=1, dtype=jnp.int32),
            )

        def append(x: Array, values: Array, axis: int) -> Array:
            at = [self.length if i == axis else 0 for i in range(x.ndim)]
            return jax.lax.dynamic_update_slice(x, values, at)

        kept = self.positions
        return self.replace(
            k=append(self.k, stored(new.k.swapaxes(2, 3), self.k.dtype), 3),
            v=append(self.v, stored(new.v.swapaxes(2, 3), self.v.dtype), 3),
            valid=append(self.valid, new.valid, 1),
            length=self.length + count,
            positions=None if kept is None else append(kept, new.positions.astype(kept.dtype), 1),
        )

    def _next_slots(self, count: int) -> Int[Array, "*rows T"]:
        """The slots of the next `count` tokens: [T], or [B, T] if rows have their own lengths."""
        return self.length[..., None] + jnp.arange(count)


def _next_positions(valid: Bool[Array, "B S"], positions: Int[Array, "B S"]) -> Int[Array, "B 1"]:
    last = jnp.where(valid, positions, -1)
    return jnp.max(last, axis=1, keepdims=True, initial=-1) + 1


def new_cache(
    config: ModelConfig, rows: int, slots: int, dtype: Any, past: Past | None = None
) -> Cache:
    """A cache for `rows` rows of at most `slots` tokens, empty but for `past`."""
    shape = (config.layers, rows, config.kv_heads, slots, config.head_dim)
    if past is None:
        return Cache(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            valid=jnp.zeros((rows, slots), bool),
            length=jnp.zeros((), jnp.int32),
        )

    def room(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, slots if i == axis else 0) for i in range(x.ndim)])

    return Cache(
        k=room(stored(past.k.swapaxes(2, 3), dtype), 3),
        v=room(stored(past.v.swapaxes(2, 3), dtype), 3),
        valid=room(past.valid, 1),
        length=jnp.asarray(past.valid.shape[1], jnp.int32),
        positions=room(past.positions, 1),
    )
