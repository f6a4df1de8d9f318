"""The training loss: cross entropy on target tokens plus a balance term on the gates (Eq. 9-10)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import ModelConfig
from lorage_jax.models.decoder import head_logits

CHUNK = 64  # slots of every row whose logits are in memory at a time


def cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed negative log-likelihood in nats over the masked targets, and their number."""
    nll = jnp.where(mask, token_nll(logits, targets), 0.0)
    return jnp.sum(nll), jnp.sum(mask).astype(jnp.float32)


def token_nll(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log-likelihood of every target in nats."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def frozen_head_nll(
    config: ModelConfig,
    params: dict[str, Any],
    hidden: Float[Array, "B N D"],
    targets: Int[Array, "B N"],
    mask: Bool[Array, "B N"],
) -> Float[Array, ""]:
    """`cross_entropy` of the head's logits, summed in nats, without all logits in memory at once.

    `params` holds the head, as `models.decoder.head_logits` reads it; no gradient flows to it.
    A chunk of slots in which no row has a target costs nothing, so put targets in front.
    """
    return _chunked(config, params, hidden, targets, mask, lambda nll: nll)


def _frozen_forward(config, params, hidden, targets, mask) -> Any:
    # A chunk's gradient together with its loss: the backward pass needs no logits then.
    return _chunked(config, params, hidden, targets, mask, jax.value_and_grad)


def _frozen_backward(config, slope, scale):
    return None, (slope * scale).astype(slope.dtype), None, None


frozen_head_nll.defvjp(_frozen_forward, _frozen_backward)


def _chunked(config, params, hidden, targets, mask, transform) -> Any:
    """Applies `transform` to the loss of each chunk of slots: sums losses, joins gradients."""
    rows, slots = mask.shape
    count = -(-slots // CHUNK)
    size = min(slots, CHUNK)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - slots)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(rows, count, size, *x.shape[2:]).swapaxes(0, 1)

    def chunk(inputs):
        hidden, targets, mask = inputs

        def nll(hidden):
            return cross_entropy(head_logits(config, params, hidden), targets, mask)[0]

        run = transform(nll)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, hidden))
        return jax.lax.cond(jnp.any(mask), run, lambda _: zeros, hidden)

    out = jax.lax.map(chunk, tuple(split(x) for x in (hidden, targets, mask)))
    if not isinstance(out, tuple):
        return jnp.sum(out)
    nll, slope = out
    slope = slope.swapaxes(0, 1).reshape(rows, count * size, -1)[:, :slots]
    return jnp.sum(nll), slope


def squared_cv(gates: Float[Array, "P L E"]) -> Float[Array, ""]:
    """(sigma / mu)^2 of each expert's summed gates in the batch, per layer, mean over layers.

    Unbiased variance over the experts. Equation 9 without its factor alpha.
    """
    importance = jnp.sum(gates, axis=0)
    mean = jnp.mean(importance, axis=-1)
    return jnp.mean(jnp.var(importance, axis=-1, ddof=1) / jnp.square(mean))


def expert_usage(gates: Float[Array, "P L E"]) -> Float[Array, "L E"]:
    """The share of prompts that select each expert, per layer; sums to K over the experts."""
    return jnp.mean(gates > 0, axis=0)
