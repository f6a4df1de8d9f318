"""Rounding of float32 sums to the dtype of the weights: nearest, or stochastic.

An update smaller than half the distance between two neighbouring numbers is lost when it is rounded
to nearest. Stochastic rounding goes up or down at random, with the probabilities that keep the
number on average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lorage_jax.errors import ConfigError, WeightsError

ROUNDINGS = ("auto", "nearest", "stochastic")
# `auto` rounds stochastically if rounding to nearest keeps less than this share of an update.
# Measured on pretrained weights (experiments/results/rounding.md): of weaker updates, nearest loses
# a fifth to four fifths of the effect; of stronger ones it loses at most 2 %, and stochastic
# rounding, whose noise is larger, hardly less or even more.
KEPT = 0.5


def choose_rounding(rounding: str, stored: Any, target: Any, kept: Callable[[], float]) -> str:
    """Returns `nearest` or `stochastic`; for `auto`, the one expected to lose less of an update.

    Args:
        rounding: one of ROUNDINGS.
        stored: dtype of the weights before the merge.
        target: their dtype after it.
        kept: computes `update_kept` of rounding to nearest; called for `auto` only.

    Only weights that already are numbers of `target` pull a small update back to where they were.
    Raises ConfigError for an unknown name.
    """
    if rounding not in ROUNDINGS:
        raise ConfigError(f"rounding is {rounding!r}; expected one of {', '.join(ROUNDINGS)}.")
    if jnp.dtype(target) == jnp.float32:
        return "nearest"
    if rounding != "auto":
        return rounding
    if jnp.dtype(stored) != jnp.dtype(target):
        return "nearest"
    return "stochastic" if kept() < KEPT else "nearest"


def round_to(exact: Float[Array, "*S"], dtype: Any, key: PRNGKeyArray | None) -> Float[Array, "*S"]:
    """Casts float32 numbers; with a key, stochastically, so that every number is kept on average.

    Numbers that `dtype` holds stay as they are. A key gives the same result on any sharding.
    """
    if key is None or jnp.dtype(dtype) == jnp.float32:
        return exact.astype(dtype)
    info = jnp.finfo(dtype)
    # The distance to the next number is a power of two, below `smallest` that of `smallest`.
    smallest = max(int(info.minexp), -126 + info.nmant)
    bits = jax.lax.bitcast_convert_type(exact, jnp.int32)
    exponent = jnp.maximum(((bits >> 23) & 0xFF) - 127, smallest)
    step = jax.lax.bitcast_convert_type((exponent - info.nmant + 127) << 23, jnp.float32)
    steps = exact / step
    below = jnp.floor(steps)
    up = jax.random.uniform(key, exact.shape) < steps - below
    return ((below + up) * step).astype(dtype)


def check_finite(weights: dict[str, Array]) -> None:
    """Raises WeightsError if a sum overflowed, as can happen in float16."""
    for name, value in weights.items():
        if value.dtype == jnp.float16 and not bool(jnp.isfinite(value).all()):
            raise WeightsError(
                f"the merged {name} weights do not fit float16, whose largest number is 65504. "
                "Use bfloat16 or float32."
            )
