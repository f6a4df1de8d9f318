"""The arithmetic of a decoder and of low-rank updates, as pure functions.

Letters: B rows, T query length, S key length, D width, N heads, K kv heads, H head size, F FFN
width, V vocabulary, E experts, R rank. Weights keep the input axis first, as in `x @ w`.

Norms, rotary positions, softmax and logits are computed in float32 whatever the dtype of the
weights; float32 matrix products ask for full precision, which TPUs and GPUs do not give unasked.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import RopeScaling

NEGATIVE = -1e30  # a masked score: finite, so that a row with no key gives no NaN


def einsum(spec: str, *operands: Array, out: DTypeLike | None = None) -> Array:
    """`jnp.einsum` that accumulates in `out` and, on float32 operands, multiplies in float32."""
    full = all(x.dtype == jnp.float32 for x in operands)
    precision = jax.lax.Precision.HIGHEST if full else None
    return jnp.einsum(spec, *operands, precision=precision, preferred_element_type=out)


def rms_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, "D"], eps: float, offset: float
) -> Float[Array, "*batch D"]:
    """x / rms(x) * (offset + scale). Gemma stores scales around 0 (offset 1), others around 1."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * (offset + scale.astype(jnp.float32))).astype(x.dtype)


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> Float[Array, "half"]:
    """Radians per position for each pair of head channels, [H/2], scaled as the model was."""
    freq = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return freq
    if scaling.kind == "linear":
        return freq / scaling.factor
    # llama3: long wavelengths are stretched by the factor, short ones kept, between them blended.
    turns = scaling.original_max_positions * freq / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return (1 - blend) * freq / scaling.factor + blend * freq


def rope_table(
    positions: Int[Array, "B T"], frequencies: Float[Array, "half"]
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of every angle, float32: bfloat16 cannot count past 256."""
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T N H"]:
    """Rotates channel i with channel i + H/2 (Hugging Face's layout, no permutation of weights)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or x unchanged when there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attention_mask(
    valid: Bool[Array, "B S"], query_slots: Int[Array, "T"], window: int | None
) -> Bool[Array, "B T S"]:
    """True where slot t may look at slot s: a real token, not later, and inside the window."""
    slots = jnp.arange(valid.shape[1])
    seen = slots[None, :] <= query_slots[:, None]
    if window is not None:
        seen &= slots[None, :] > query_slots[:, None] - window
    return valid[:, None, :] & seen[None]


def branch_mask(
    valid: Bool[Array, "B T"],
    positions: Int[Array, "B T"],
    branches: Int[Array, "B T"],
    window: int | None,
) -> Bool[Array, "B T T"]:
    """The same for rows that hold one text with several continuations side by side.

    `branches`: 0 for the text, k for its k-th continuation, which sees the text and itself. The
    window counts positions, as slots of other continuations lie in between.
    """
    slots = jnp.arange(valid.shape[1])
    seen = (slots[None, :] <= slots[:, None])[None] & valid[:, None, :]
    seen &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    if window is not None:
        seen &= positions[:, None, :] > positions[:, :, None] - window
    return seen


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    scale: float,
    cap: float | None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention: head n reads kv head n // (N / K). Softmax in float32."""
    batch, length, heads, size = q.shape
    kv = k.shape[2]
    grouped = q.reshape(batch, length, kv, heads // kv, size)
    scores = einsum("btkgh,bskh->bkgts", grouped, k, out=jnp.float32) * scale
    scores = jnp.where(mask[:, None, None], soft_cap(scores, cap), NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return einsum("bkgts,bskh->btkgh", weights, v).reshape(batch, length, heads, size)


def activation(x: Array, name: str) -> Array:
    """`silu`, or `gelu_tanh` (the tanh approximation)."""
    return jax.nn.silu(x) if name == "silu" else jax.nn.gelu(x, approximate=True)


def low_rank(
    x: Float[Array, "B T I"], a: Float[Array, "I R"], b: Float[Array, "R *out"], scale: float
) -> Float[Array, "B T *out"]:
    """(x A) B * scale, one LoRA for all rows (PAPER Eq. 1)."""
    inner = einsum("bti,ir->btr", x, a.astype(x.dtype))
    out = einsum("btr,ro->bto", inner, b.astype(x.dtype).reshape(b.shape[0], -1))
    return (out * scale).reshape(*x.shape[:2], *b.shape[1:])


def gated_low_rank(
    x: Float[Array, "B T I"],
    a: Float[Array, "E I R"],
    b: Float[Array, "E R O"],
    gates: Float[Array, "B E"],
    combine: str,
    scale: float,
) -> Float[Array, "B T O"]:
    """The unmerged update of Eq. 8, each row with its own gates; no per-row weights are built.

    `products`: sum_e g_e x a_e b_e. `factors`: x (sum_e g_e a_e) (sum_e g_e b_e).
    """
    # Gates weigh in float32, as in the merge, whatever the weights' dtype.
    gates = gates.astype(jnp.float32)
    inner = einsum("bti,eir->bter", x, a.astype(x.dtype), out=jnp.float32)
    if combine == "products":
        mixed = inner * gates[:, None, :, None]
    else:
        shared = einsum("bter,be->btr", inner, gates)
        mixed = shared[:, :, None, :] * gates[:, None, :, None]
    return einsum("bter,ero->bto", mixed.astype(x.dtype), b.astype(x.dtype)) * scale
