"""The arithmetic of a decoder and of low-rank updates, as pure functions.

Letters: B rows, T query length, S key length, D width, N heads, K kv heads, H head size, F FFN
width, V vocabulary, E experts, R rank. Weights keep the input axis first, as in `x @ w`.

Norms, softmax and logits are computed in float32 whatever the dtype of the weights. Products of
float32 matrices request full precision, which TPUs and GPUs do not use by default.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

NEGATIVE = -1e30  # the score of a masked key: finite, so that a row without keys is not NaN


def einsum(spec: str, *operands: Array, out: DTypeLike | None = None) -> Array:
    """`jnp.einsum` that accumulates in dtype `out` and multiplies float32 operands in float32."""
    full = all(x.dtype == jnp.float32 for x in operands)
    precision = jax.lax.Precision.HIGHEST if full else None
    return jnp.einsum(spec, *operands, precision=precision, preferred_element_type=out)


def dropout(x: Float[Array, "*shape"], key: Array, rate: float) -> Float[Array, "*shape"]:
    """x with a share `rate` of its values set to 0 and the others divided by 1 - rate."""
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def project(
    x: Float[Array, "B T D"],
    w: Float[Array, "D *out"] | Float[Array, "out D"],
    out: DTypeLike | None = None,
    transposed: bool = False,
) -> Float[Array, "B T *out"]:
    """Contracts the last axis of x with the first axis of w; with `transposed`, with its last one.

    Computed as one product of two matrices: with separate batch axes, the backward pass on a CPU
    would write every activation transposed, which costs more than the product.
    """
    rows = x.reshape(-1, x.shape[-1])
    matrix = w if transposed else w.reshape(w.shape[0], -1)
    if mixed(x, w):
        y: Array = _narrow_product(rows, matrix, transposed)  # pyright: ignore[reportAssignmentType]
    else:
        y = einsum(_PRODUCTS[transposed][0], rows, matrix, out=out)
    return y.reshape(*x.shape[:-1], *(w.shape[:1] if transposed else w.shape[1:]))


# By whether the weights are transposed: a product, and the gradients of its rows and weights.
_PRODUCTS = {
    False: ("ti,io->to", "to,io->ti", "ti,to->io"),
    True: ("ti,oi->to", "to,oi->ti", "ti,to->oi"),
}


def mixed(x: Array, w: Array) -> bool:
    """True for float32 activations and bfloat16 weights, as programs of a CPU have them."""
    return x.dtype == jnp.float32 and w.dtype == jnp.bfloat16


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow_product(
    x: Float[Array, "T I"], w: Float[Array, "I O"] | Float[Array, "O I"], transposed: bool
) -> Float[Array, "T O"]:
    """x @ w with x rounded to bfloat16 and a float32 result; so, too, in the backward pass.

    Transposed weights are contracted as they lie in memory: given w.T, XLA's CPU backend would
    convert all of them to float32 in every call.
    """
    return _narrow_rows(_PRODUCTS[transposed][0], x, w)


def _narrow_forward(x, w, transposed):
    # Frozen weights need no gradient of their own: x is kept for trained ones alone.
    kept = x.value if w.perturbed else None
    return _narrow_rows(_PRODUCTS[transposed][0], x.value, w.value), (kept, w.value)


def _narrow_backward(transposed, saved, dy):
    x, w = saved
    _, of_rows, of_weights = _PRODUCTS[transposed]
    dw = jnp.zeros_like(w) if x is None else _narrow(of_weights, x, dy).astype(w.dtype)
    return _narrow_rows(of_rows, dy, w), dw


_narrow_product.defvjp(_narrow_forward, _narrow_backward, symbolic_zeros=True)


def _narrow_rows(spec: str, rows: Array, w: Array) -> Array:
    """`_narrow` of at least two rows: XLA's CPU backend multiplies one in float32, slowly."""
    if rows.shape[0] > 1:
        return _narrow(spec, rows, w)
    return _narrow(spec, jnp.concatenate([rows, rows]), w)[:1]


def _narrow(spec: str, left: Array, right: Array) -> Array:
    left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def rms_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, "D"], eps: float, offset: float
) -> Float[Array, "*batch D"]:
    """x / rms(x) * (offset + scale). `offset` is 1 for Gemma, whose scales are stored around 0."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * (offset + scale.astype(jnp.float32))).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float
) -> Float[Array, "*batch D"]:
    """Normalises x to mean 0 and variance 1 over D, then multiplies by scale and adds bias."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap), or x unchanged when there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attention_mask(
    valid: Bool[Array, "B S"], query_slots: Int[Array, "*rows T"], window: int | None
) -> Bool[Array, "B T S"]:
    """True where slot t may attend to slot s: a real token, not later, and within the window.

    The asking slots are the same in every row, or [B, T].
    """
    slots, asking = jnp.arange(valid.shape[1]), query_slots[..., None]
    seen = slots <= asking
    if window is not None:
        seen &= slots > asking - window
    return valid[:, None, :] & seen


def branch_mask(
    valid: Bool[Array, "B S"],
    positions: Int[Array, "B S"],
    branches: Int[Array, "B S"] | None,
    window: int | None,
    texts: Int[Array, "B S"] | None = None,
    query_slots: Int[Array, "T"] | None = None,
) -> Bool[Array, "B T S"]:
    """`attention_mask` for rows of several texts, or of a text with several continuations.

    `branches` is 0 in a text and k in its k-th continuation, which sees the text and itself; None
    if there are no continuations. `texts` numbers the texts of a row, if there are several. The
    window counts positions, because slots of other continuations lie in between. By default, every
    slot asks (T = S).
    """
    slots = jnp.arange(valid.shape[1])
    asking = slots if query_slots is None else query_slots

    def own(x: Array) -> Array:
        return (x if query_slots is None else x[:, query_slots])[:, :, None]

    seen = (slots[None, :] <= asking[:, None])[None] & valid[:, None, :]
    if branches is not None:
        seen &= (branches[:, None, :] == 0) | (branches[:, None, :] == own(branches))
    if texts is not None:
        seen &= texts[:, None, :] == own(texts)
    if window is not None:
        seen &= positions[:, None, :] > own(positions) - window
    return seen


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    scale: float,
    cap: float | None,
    blocks: int = 1,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention: head n reads kv head n // (N / K). Softmax in float32.

    The backward pass recomputes the scores instead of keeping them. With several `blocks` of
    queries, each leaves out the keys after its last query, which the mask must hide: T query slots
    are the last T of the S key slots.
    """
    grouped, keys, values = _grouped(q, k), k.swapaxes(1, 2), v.swapaxes(1, 2)
    if blocks == 1:
        y: Array = _attend(grouped, keys, values, mask, scale, cap)  # pyright: ignore[reportAssignmentType]
    else:
        queries, slots = mask.shape[1:]
        parts: list[Any] = []
        for start, end in pairwise(queries * i // blocks for i in range(blocks + 1)):
            asking, seen = slice(start, end), slice(slots - queries + end)
            own_keys, own_values = keys[:, :, seen], values[:, :, seen]
            own_mask = mask[:, asking, seen]
            parts.append(
                _attend(grouped[:, :, :, asking], own_keys, own_values, own_mask, scale, cap)
            )
        y = jnp.concatenate(parts, axis=3)
    return y.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def attention_with_cache(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    cached_k: Float[Array, "B K S H"],
    cached_v: Float[Array, "B K S H"],
    cached_mask: Bool[Array, "B T S"],
    mask: Bool[Array, "B T T"],
    scale: float,
    cap: float | None,
) -> Float[Array, "B T N H"]:
    """`attention` over S cached slots and the T new ones, without joining their arrays."""
    grouped, values = _grouped(q, k), (cached_v, v.swapaxes(1, 2))
    scores = (
        _scores(grouped, cached_k, cached_mask, scale, cap),
        _scores(grouped, k.swapaxes(1, 2), mask, scale, cap),
    )
    top = jnp.maximum(*(jnp.max(x, axis=-1, keepdims=True) for x in scores))
    weights = [jnp.exp(x - top) for x in scores]
    total = jnp.add(*(jnp.sum(x, axis=-1, keepdims=True) for x in weights))
    parts = (
        _batched("rs,sh->rh", w.astype(x.dtype), x, out=jnp.float32)
        for w, x in zip(weights, values, strict=True)
    )
    y = (jnp.add(*parts) / total).astype(v.dtype)
    return y.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _grouped(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"]) -> Float[Array, "B K G T H"]:
    """The queries by the kv head that they read."""
    batch, length, heads, size = q.shape
    kv = k.shape[2]
    return q.reshape(batch, length, kv, heads // kv, size).transpose(0, 2, 3, 1, 4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    scale: float,
    cap: float | None,
) -> Float[Array, "B K G T H"]:
    return _attend_forward(q, k, v, mask, scale, cap)[0]


def _attend_forward(q, k, v, mask, scale, cap):
    scores = _scores(q, k, mask, scale, cap)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = _batched("rs,sh->rh", weights.astype(v.dtype), v, out=jnp.float32) / total
    y = y.astype(v.dtype)
    return y, (q, k, v, mask, top, total, y)


def _attend_backward(scale, cap, saved, dy):
    q, k, v, mask, top, total, y = saved
    scores = _scores(q, k, mask, scale, cap)
    # Not exp(scores - top - log(total)): where every key is masked, -1e30 absorbs the logarithm.
    weights = jnp.exp(scores - top) / total
    dv = _batched("rs,rh->sh", weights.astype(dy.dtype), dy)
    dweights = _batched("rh,sh->rs", dy, v, out=jnp.float32)
    # The gradient of the softmax's denominator: sum_s weights dweights = y . dy.
    inner = jnp.sum(y.astype(jnp.float32) * dy.astype(jnp.float32), axis=-1, keepdims=True)
    dscores = weights * (dweights - inner) * scale
    if cap is not None:
        dscores *= 1 - jnp.square(scores / cap)
    dscores = jnp.where(mask[:, None, None], dscores, 0.0).astype(q.dtype)
    dq = _batched("rs,sh->rh", dscores, k)
    dk = _batched("rs,rh->sh", dscores, q)
    return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _scores(q: Array, k: Array, mask: Array, scale: float, cap: float | None) -> Array:
    scores = _batched("rh,sh->rs", q, k, out=jnp.float32) * scale
    return jnp.where(mask[:, None, None], soft_cap(scores, cap), NEGATIVE)


def _batched(spec: str, left: Array, right: Array, out: DTypeLike | None = None) -> Array:
    """Applies `spec` per batch row and kv head; r runs over the head's queries, group by group.

    Computed as plain matrix products: a separate group axis would copy every score.
    """
    shape = left.shape[2:4]
    left = left.reshape(*left.shape[:2], -1, left.shape[-1])
    if right.ndim == 5:
        right = right.reshape(*right.shape[:2], -1, right.shape[-1])
    a, rest = spec.split(",")
    b, c = rest.split("->")
    y = einsum(f"bk{a},bk{b}->bk{c}", left, right, out=out)
    return y.reshape(*y.shape[:2], *shape, y.shape[-1]) if c[0] == "r" else y


def activation(x: Array, name: str) -> Array:
    """Applies `silu`, `gelu_tanh` (the tanh approximation of GELU) or `relu`."""
    if name == "gelu_tanh":
        return jax.nn.gelu(x, approximate=True)
    return jax.nn.silu(x) if name == "silu" else jax.nn.relu(x)


def low_rank(
    x: Float[Array, "B T I"], a: Float[Array, "I R"], b: Float[Array, "R *out"], scale: float
) -> Float[Array, "B T *out"]:
    """(x A) B * scale: one LoRA for all rows (Eq. 1 of the paper)."""
    return project(project(x, a.astype(x.dtype)), b.astype(x.dtype)) * scale


def dora_ratio(
    w: Float[Array, "..."], adapter: dict[str, Array], scale: float
) -> Float[Array, "*out"]:
    """m / |W + scale A B| per output, in float32; no gradient flows to the norm (DoRA, Eq. 11).

    Args:
        w: the weights, [*in, *out].
        adapter: `a` [*in, R], `b` [R, *out] and `magnitude` m [*out].
        scale: alpha / R.
    """
    a, b = adapter["a"].astype(jnp.float32), adapter["b"].astype(jnp.float32)
    update = einsum("ir,ro->io", a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1)) * scale
    whole = w.astype(jnp.float32).reshape(update.shape) + update
    length = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(whole * whole, axis=0)))
    return adapter["magnitude"].astype(jnp.float32) / length.reshape(b.shape[1:])


def gated_low_rank(
    x: Float[Array, "B T I"],
    a: Float[Array, "E I R"] | Float[Array, "I E R"],
    b: Float[Array, "E R O"],
    gates: Float[Array, "B *T E"],
    combine: str,
    scale: float,
    input_first: bool = False,
) -> Float[Array, "B T O"]:
    """The unmerged update (Eq. 8 of the paper), with gates per row or per token.

    `products`: sum_e g_e x a_e b_e. `factors`: x (sum_e g_e a_e) (sum_e g_e b_e). No row ever gets
    weight matrices of its own. With `input_first`, `a` is [I, E, R].
    """
    if not input_first:
        a = a.swapaxes(0, 1)
    # Gates are applied in float32, as in the merge, whatever the dtype of the weights.
    gates = gates.astype(jnp.float32)
    if combine == "factors" and gates.ndim == 2 and x.shape[1] >= a.shape[1]:
        # E times less arithmetic: each row's two factors are summed once and used T times.
        a = einsum("be,ier->bir", gates, a.astype(jnp.float32)).astype(x.dtype)
        b = einsum("be,ero->bro", gates, b.astype(jnp.float32)).astype(x.dtype)
        return einsum("btr,bro->bto", einsum("bti,bir->btr", x, a), b) * scale
    gates = (gates[:, None] if gates.ndim == 2 else gates)[..., None]
    # Two plain products over all experts' ranks, for the reason that `project` gives.
    inner = project(x, a.astype(x.dtype), out=jnp.float32)
    mixed = inner * gates
    if combine == "factors":
        mixed = jnp.sum(mixed, axis=2, keepdims=True) * gates
    mixed = mixed.astype(x.dtype).reshape(*x.shape[:2], -1)
    return project(mixed, b.astype(x.dtype).reshape(-1, b.shape[-1])) * scale
