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

    `valid` marks real tokens. `positions` of the slots are kept where they do not simply count the
    real tokens: behind a `Past`. Windows then count positions, as there may be padding in between.

    The slots of a head lie together, as attention reads them: otherwise every step of decoding
    would copy the whole cache.
    """

    k: Float[Array, "L B K S H"]
    v: Float[Array, "L B K S H"]
    valid: Bool[Array, "B S"]
    length: Int[Array, "*rows"]
    positions: Int[Array, "B S"] | None = None

    @property
    def next_positions(self) -> Int[Array, "B 1"]:
        """The position of each row's next token."""
        if self.positions is None:
            return jnp.sum(self.valid, axis=1, keepdims=True, dtype=jnp.int32)
        return _next_positions(self.valid, self.positions)

    def append(self, mask: Bool[Array, "B T"], positions: Int[Array, "B T"]) -> Cache:
        """The cache with T more slots marked as filled; their keys and values are still missing."""
        if self.length.ndim:
            assert self.positions is None, "rows with lengths of their own have nothing in front"
            return self.replace(
                valid=self.valid.at[self.places(mask.shape[1])].set(mask, mode="drop"),
                length=self.length + jnp.sum(mask, axis=1, dtype=jnp.int32),
            )
        at = (0, self.length)
        kept = self.positions
        if kept is not None:
            kept = jax.lax.dynamic_update_slice(kept, positions.astype(kept.dtype), at)
        return self.replace(
            valid=jax.lax.dynamic_update_slice(self.valid, mask, at),
            length=self.length + mask.shape[1],
            positions=kept,
        )

    def next_slots(self, count: int) -> Int[Array, "*rows T"]:
        """The slots of the next `count` tokens: [T], or [B, T] if rows have their own lengths."""
        return self.length[..., None] + jnp.arange(count)

    def places(self, count: int) -> tuple[Array, Array]:
        """Indices of `next_slots` in arrays [B, S], for rows with lengths of their own."""
        return jnp.arange(self.length.shape[0])[:, None], self.next_slots(count)

    def write(
        self,
        layer: Int[Array, ""],
        start: Int[Array, "*rows"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
    ) -> Cache:
        """The cache with a layer's keys and values of T tokens, which begin at the slots `start`.

        Beyond the last slot nothing is written.
        """
        if start.ndim:
            rows, slots = self.replace(length=start).places(k.shape[1])

            def put(x: Array, new: Array) -> Array:
                return x.at[layer, rows, :, slots].set(
                    new.astype(x.dtype), mode="drop", unique_indices=True
                )

        else:

            def put(x: Array, new: Array) -> Array:
                at = (layer, 0, 0, start, 0)
                new = new.swapaxes(1, 2)[None].astype(x.dtype)
                return jax.lax.dynamic_update_slice(x, new, at)

        return self.replace(k=put(self.k, k), v=put(self.v, v))


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
        k=room(past.k.swapaxes(2, 3).astype(dtype), 3),
        v=room(past.v.swapaxes(2, 3).astype(dtype), 3),
        valid=room(past.valid, 1),
        length=jnp.asarray(past.valid.shape[1], jnp.int32),
        positions=room(past.positions, 1),
    )
