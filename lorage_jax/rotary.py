"""Rotary positions: the angles of every position, with a model's scaling, and the rotation."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lorage_jax.config import RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Float[Array, "half"]:
    """Radians per position for each pair of head channels, [H/2], with the model's scaling."""
    freq = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return freq
    if scaling.kind == "linear":
        return freq / scaling.factor
    if scaling.kind == "yarn":
        kept = _yarn_share(head_dim, theta, scaling)
        return (1 - kept) * freq / scaling.factor + kept * freq
    # llama3: long wavelengths are stretched by the factor, short ones kept, others blended.
    turns = scaling.original_max_positions * freq / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return (1 - blend) * freq / scaling.factor + blend * freq


def _yarn_share(head_dim: int, theta: float, scaling: RopeScaling) -> Float[Array, "half"]:
    """The unscaled share of each frequency (YaRN, arXiv 2309.00071, Section 3.2).

    1 up to the pair of channels that turns `beta_fast` times over the original positions, 0 from
    the pair that turns `beta_slow` times, linear in the pair's index in between.
    """

    def pair(turns: float) -> float:
        radians = 2 * math.pi * turns / scaling.original_max_positions
        return -head_dim * math.log(radians) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first if last != first else 1e-3
    return 1 - jnp.clip((jnp.arange(head_dim // 2, dtype=jnp.float32) - first) / width, 0.0, 1.0)


def table(
    positions: Int[Array, "B T"], frequencies: Float[Array, "half"], factor: float = 1.0
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """`factor` times cosine and sine of every angle, in float32: bfloat16 is exact up to 256."""
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1 else (factor * cos, factor * sin)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T N H"]:
    """Rotates channels i and i + H/2 as a pair, the layout of Hugging Face's weights.

    With angles for fewer channels, H counts only these: the first ones rotate, the others stay.
    """
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        first = rotate(x[..., :rotated], cos, sin)
        return jnp.concatenate([first, x[..., rotated:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
