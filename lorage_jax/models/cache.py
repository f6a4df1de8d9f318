"""The key/value cache of decoding."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import ModelConfig


class Cache(flax.struct.PyTreeNode):
    """Keys and values of earlier slots; the first `length` of the S slots are filled in every row.

    Rows are left-padded, so that one slot index serves the whole batch. `valid` marks real tokens.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    valid: Bool[Array, "B S"]
    length: Int[Array, ""]


def new_cache(config: ModelConfig, rows: int, slots: int, dtype: Any) -> Cache:
    """An empty cache for `rows` rows of at most `slots` tokens."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
    return Cache(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),
        valid=jnp.zeros((rows, slots), bool),
        length=jnp.zeros((), jnp.int32),
    )
