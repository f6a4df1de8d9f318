"""The key/value cache of decoding, and what stands in it before the first token."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import ModelConfig


class Past(flax.struct.PyTreeNode):
    """Keys and values in front of the tokens of B rows, as if earlier tokens had left them.

    Attributes:
        k, v: as in the cache: rotated, where the model rotates.
        valid: True at slots that the row has.
        positions: the position of each slot; a row's tokens go on after its last one.
    """

    k: Float[Array, "L B M K H"]
    v: Float[Array, "L B M K H"]
    valid: Bool[Array, "B M"]
    positions: Int[Array, "B M"]


class Cache(flax.struct.PyTreeNode):
    """Keys and values of earlier slots; the first `length` of the S slots are filled in every row.

    Rows are left-padded, so that one slot index serves the whole batch. `valid` marks real tokens.
    `positions` of the slots are kept where they do not simply count the real tokens: behind a
    `Past`. Windows then count positions, as there may be padding in between.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    valid: Bool[Array, "B S"]
    length: Int[Array, ""]
    positions: Int[Array, "B S"] | None = None

    @property
    def next_positions(self) -> Int[Array, "B 1"]:
        """The position of each row's next token."""
        if self.positions is None:
            return jnp.sum(self.valid, axis=1, keepdims=True, dtype=jnp.int32)
        last = jnp.where(self.valid, self.positions, -1)
        return jnp.max(last, axis=1, keepdims=True, initial=-1) + 1

    def append(self, mask: Bool[Array, "B T"], positions: Int[Array, "B T"]) -> Cache:
        """The cache with T more slots marked as filled; their keys and values are still missing."""
        at = (0, self.length)
        kept = self.positions
        if kept is not None:
            kept = jax.lax.dynamic_update_slice(kept, positions.astype(kept.dtype), at)
        return self.replace(
            valid=jax.lax.dynamic_update_slice(self.valid, mask, at),
            length=self.length + mask.shape[1],
            positions=kept,
        )


def new_cache(
    config: ModelConfig, rows: int, slots: int, dtype: Any, past: Past | None = None
) -> Cache:
    """A cache for `rows` rows of at most `slots` tokens, empty but for `past`."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
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
        k=room(past.k.astype(dtype), 2),
        v=room(past.v.astype(dtype), 2),
        valid=room(past.valid, 1),
        length=jnp.asarray(past.valid.shape[1], jnp.int32),
        positions=room(past.positions, 1),
    )
