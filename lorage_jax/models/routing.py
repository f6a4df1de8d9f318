"""Routers inside a layer: every token chooses its experts (LoRAMoE, MixLoRA).

Letters as in `ops.py`. Probabilities, gates and sums are float32 whatever the dtype of the weights.
All E experts are applied to all tokens, without a loop over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lorage_jax import ops
from lorage_jax.config import ModelConfig

Expert = dict[str, Array]  # factors of all experts of one linear layer: a [E, I, R], b [E, R, O]


@dataclass(frozen=True)
class Drop:
    """Dropout of the inputs of LoRAs, with masks that belong to parts of a key."""

    key: Array
    rate: float

    def split(self, *shape: int) -> Array:
        """As many keys as `shape` says."""
        return jax.random.split(self.key, shape)

    def of(self, x: Array, key: Array) -> Array:
        return ops.dropout(x, key, self.rate)


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
    x: Float[Array, "B T I"],
    expert: Expert,
    gates: Float[Array, "B T E"],
    scale: float,
    drop: Drop | None,
) -> Float[Array, "B T O"]:
    """scale * sum_e g_e x a_e b_e; with dropout, each expert has a mask of its own."""
    a, b = expert["a"].astype(x.dtype), expert["b"].astype(x.dtype)
    if drop is None:
        inner = ops.project(x, a.swapaxes(0, 1), out=jnp.float32)
    else:  # expert by expert, as E dropped copies of x would take E times its memory
        each = zip(a, drop.split(a.shape[0]), strict=True)
        own = [ops.project(drop.of(x, key), one, out=jnp.float32) for one, key in each]
        inner = jnp.stack(own, axis=2)
    inner = (inner * gates[..., None]).astype(x.dtype).reshape(*x.shape[:2], -1)
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

    The base's projections run once: gate and up are shared by the experts, and down is linear, so
    it is applied to sum_e g_e h_e; its bias stays exact, as the gates of a token sum to 1. The
    experts follow one another, and the backward pass computes their activations again: one expert's
    [B, T, F] at a time takes half the time of [B, T, E, F] on a CPU, and a fifth of its memory.

    Args:
        config: the model's shape and activation.
        linear: (name, input) -> output of the base's projection.
        x: the FFN's input.
        experts: the LoRAs of gate, up and down.
        gates: of every token.
        scale: alpha / R.
        drop: dropout of the inputs of LoRAs; None outside of training.
    """
    inside = (config.projections[0], "up") if config.gated else (config.projections[0],)
    base = {name: linear(name, x) for name in inside}

    def updated(name, one, key):
        inner = (_inner(x, one[name]["a"], drop, key) * scale).astype(x.dtype)
        return base[name] + ops.project(inner, one[name]["b"].astype(x.dtype))

    @jax.checkpoint
    def add(mixed, expert):
        one, gate, keys = expert
        hidden = ops.activation(updated(inside[0], one, keys[0]), config.activation)
        hidden = hidden * updated("up", one, keys[1]) if config.gated else hidden
        inner = _inner(hidden, one["down"]["a"], drop, keys[2]) * gate
        return mixed + gate * hidden.astype(jnp.float32), inner.astype(x.dtype)

    count = gates.shape[-1]
    keys = jnp.zeros((count, 3)) if drop is None else drop.split(count, 3)
    nothing = jnp.zeros(base["up"].shape, jnp.float32)
    each = jnp.moveaxis(gates, -1, 0)[..., None]
    mixed, inner = jax.lax.scan(add, nothing, (experts, each, keys))
    down = experts["down"]["b"].astype(x.dtype)
    update = ops.project(
        jnp.moveaxis(inner, 0, 2).reshape(*x.shape[:2], -1), down.reshape(-1, down.shape[-1])
    )
    return linear("down", mixed.astype(x.dtype)) + update * scale


def _inner(
    x: Float[Array, "B T I"], a: Float[Array, "I R"], drop: Drop | None, key: Array
) -> Float[Array, "B T R"]:
    """x a in float32, with dropout of x."""
    x = x if drop is None else drop.of(x, key)
    return ops.project(x, a.astype(x.dtype), out=jnp.float32)


def sums_of(
    p: Float[Array, "B T E"], gates: Float[Array, "B T E"], real: Bool[Array, "B T"]
) -> dict[str, Float[Array, "B E"]]:
    """Sums over the real tokens of every row: `probability`, and tokens that `kept` an expert."""
    kept = (gates > 0).astype(jnp.float32)
    return {"probability": row_sums(p, real), "kept": row_sums(kept, real)}
