"""bfloat16 weights in the programs of a CPU.

XLA's CPU backend multiplies bfloat16 matrices, but it moves bfloat16 data in float32: to slice or
gather, it converts the weights of all layers in every call. Programs for a CPU therefore take them
as uint16 arrays over the same memory, and read a slice as bfloat16 again; so they do with the keys
and values of a cache. Their activations are float32. Programs for other devices or dtypes do not
change.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

TABLE = "embed_bits"  # the embedding table again, for its lookups; `embed` stays for a tied head


def program_params(params: dict[str, Any]) -> dict[str, Any]:
    """A decoder's parameters as compiled programs take them; no array is copied.

    Works on abstract arrays (`jax.ShapeDtypeStruct` with shardings), too. To be called outside
    of compiled programs.
    """
    embed = params["embed"]
    if embed.dtype != jnp.bfloat16 or _platform(embed) != "cpu":
        return params
    return params | {"layers": jax.tree.map(_view, params["layers"]), TABLE: _view(embed)}


def restored(w: Array) -> Array:
    """The bfloat16 array of a uint16 view, inside a compiled program; others are unchanged."""
    return jax.lax.bitcast_convert_type(w, jnp.bfloat16) if w.dtype == jnp.uint16 else w


def stored(x: Array, dtype: DTypeLike) -> Array:
    """x in `dtype`; in uint16, the bits of its bfloat16 values, which `restored` reads."""
    if dtype != jnp.uint16:
        return x.astype(dtype)
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def cache_dtype(params: dict[str, Any]) -> DTypeLike:
    """The dtype of a cache in a program with these parameters."""
    return jnp.uint16 if TABLE in params else params["embed"].dtype


def shared_bytes(params: dict[str, Any]) -> int:
    """Bytes that a program with these parameters is given twice: a tied table, and its view."""
    if TABLE not in params or "head" in params:  # with a head, only the view is read
        return 0
    return params[TABLE].size * params[TABLE].dtype.itemsize


def _platform(x: Any) -> str | None:
    """The platform of an array's devices; None for a numpy or an unplaced abstract array."""
    sharding = getattr(x, "sharding", None)
    return None if sharding is None else next(iter(sharding.device_set)).platform


def _view(x: Any) -> Any:
    if x.dtype != jnp.bfloat16:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, jnp.uint16, sharding=x.sharding)
    # `device_put` of a numpy view shares the memory, `jnp.asarray` would copy it.
    parts = [
        jax.device_put(np.asarray(shard.data).view(np.uint16), shard.device)
        for shard in x.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)
