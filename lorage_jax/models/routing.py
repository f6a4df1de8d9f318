"""Routers inside a layer: every token chooses its experts (LoRAMoE, MixLoRA).

Letters as in `ops.py`. Probabilities, gates and sums are float32 whatever the dtype of the weights.
All E experts are applied to all tokens, without a loop over tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lorage_jax import ops
from lorage_jax.config import ModelConfig

Expert = dict[str, Array]  # factors of all experts of one linear layer: a [E, I, R], b [E, R, O]
Drop = Callable[[Array], Array]  # dropout


def probabilities(x: Float[Array, "B T I"], router: Float[Array, "I E"]) -> Float[Array, "B T E"]:
    """The softmax over all experts, for every token."""
    return jax.nn.softmax(ops.project(x, router.astype(x.dtype), out=jnp.float32), axis=-1)


def keep_top(p: Float[Array, "B T E"], k: int) -> Float[Array, "B T E"]:
    """The k largest probabilities of every token, divided by their sum; 0 elsewhere."""
    _, chosen = jax.lax.top_k(p, k)
    kept = p * jnp.sum(jax.nn.one_hot(chosen, p.shape[-1], dtype=p.dtype), axis=-2)
    return kept / jnp.sum(kept, axis=-1, keepdims=True)


def row_sums(values: Float[Array, "B T E"], real: Bool[Array, "B T"]) -> Float[Array, "B E"]:
    """The sums over the real tokens of every row."""
    return jnp.sum(jnp.where(real[..., None], values, 0.0), axis=1)


def mixed_update(
    x: Float[Array, "B T *E I"],
    expert: Expert,
    gates: Float[Array, "B T E"],
    scale: float,
    drop: Drop | None,
) -> Float[Array, "B T O"]:
    """scale * sum_e g_e x_e a_e b_e; all experts read the same x, or each its own."""
    inner = _inner(x, expert["a"], drop) * gates[..., None]
    b = expert["b"].astype(x.dtype)
    inner = inner.astype(x.dtype).reshape(*x.shape[:2], -1)
    return ops.project(inner, b.reshape(-1, b.shape[-1])) * scale


def mixed_ffn(
    config: ModelConfig,
    linear: Callable[[str, Array], Array],
    x: Float[Array, "B T D"],
    experts: dict[str, Expert],
    gates: Float[Array, "B T E"],
    scale: float,
    drop: Drop | None,
) -> Float[Array, "B T D"]:
    """sum_e g_e FFN_e(x), where FFN_e has the LoRAs of expert e (MixLoRA, arXiv 2404.15159, Eq. 5).

    The base's down projection is linear and runs once, on sum_e g_e h_e; its bias stays exact, as
    the gates of a token sum to 1.

    Args:
        config: the model's shape and activation.
        linear: (name, input) -> output of the base's projection.
        x: the FFN's input.
        experts: the LoRAs of gate, up and down.
        gates: of every token.
        scale: alpha / R.
        drop: dropout of the inputs of LoRAs; None outside of training.
    """

    def inside(name: str) -> Float[Array, "B T E F"]:
        one = experts[name]
        inner = _inner(x, one["a"], drop).astype(x.dtype)
        update = ops.einsum("bter,ero->bteo", inner, one["b"].astype(x.dtype))
        return linear(name, x)[:, :, None] + update * scale

    hidden = ops.activation(inside(config.projections[0]), config.activation)
    hidden = hidden * inside("up") if config.gated else hidden
    mixed = ops.einsum("bte,btef->btf", gates.astype(x.dtype), hidden)
    return linear("down", mixed) + mixed_update(hidden, experts["down"], gates, scale, drop)


def _inner(
    x: Float[Array, "B T *E I"], a: Float[Array, "E I R"], drop: Drop | None
) -> Float[Array, "B T E R"]:
    """x a_e of every expert, in float32; with dropout, each expert has a mask of its own."""
    a = a.astype(x.dtype)
    if drop is not None:  # expert by expert, as E dropped copies of x would take E times its memory
        own = [x if x.ndim == 3 else x[:, :, e] for e in range(a.shape[0])]
        each = [ops.project(drop(y), a[e], out=jnp.float32) for e, y in enumerate(own)]
        return jnp.stack(each, axis=2)
    if x.ndim == 3:
        return ops.project(x, a.swapaxes(0, 1), out=jnp.float32)
    return ops.einsum("btei,eir->bter", x, a, out=jnp.float32)


def sums_of(
    p: Float[Array, "B T E"], gates: Float[Array, "B T E"], real: Bool[Array, "B T"]
) -> dict[str, Float[Array, "B E"]]:
    """Sums over the real tokens of every row: `probability`, and tokens that `kept` an expert."""
    kept = (gates > 0).astype(jnp.float32)
    return {"probability": row_sums(p, real), "kept": row_sums(kept, real)}
