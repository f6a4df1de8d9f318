"""The training loss: cross entropy on target tokens plus a balance term on the gates (Eq. 9-10)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
    return jnp.sum(_chunked(_head_nll(config, params), hidden, (targets, mask)))


def _frozen_forward(config, params, hidden, targets, mask) -> Any:
    # A chunk's gradient together with its loss: the backward pass needs no logits then.
    run = jax.value_and_grad(_head_nll(config, params))
    nll, slope = _chunked(run, hidden, (targets, mask))
    slope = _joined(slope, hidden)
    return jnp.sum(nll), slope


def _frozen_backward(config, slope, scale):
    return None, (slope * scale).astype(slope.dtype), None, None


frozen_head_nll.defvjp(_frozen_forward, _frozen_backward)


def _head_nll(config: ModelConfig, params: dict[str, Any]) -> Callable[..., Array]:
    def nll(hidden, targets, mask):
        return cross_entropy(head_logits(config, params, hidden), targets, mask)[0]

    return nll


class HeadLoss(NamedTuple):
    """Sums over the targets, in nats; a gradient flows through `loss` only."""

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    kl: Float[Array, ""]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def frozen_head_kl(
    config: ModelConfig,
    share: float,
    params: dict[str, Any],
    hidden: Float[Array, "B N D"],
    taught: Float[Array, "B N D"],
    targets: Int[Array, "B N"],
    paired: Bool[Array, "B N"],
    mask: Bool[Array, "B N"],
) -> HeadLoss:
    """Like `frozen_head_nll`, but part of a paired target's loss is the KL from a teacher.

    A paired target counts (1 - share) * nll + share * KL(teacher || student), an unpaired one its
    cross entropy alone.
    The logits of student and teacher are the same head's, of `hidden` and of `taught`; the latter
    gets no gradient.
    """
    run = _head_kl(config, share, params)
    loss, (nll, kl) = _chunked(run, hidden, (taught, targets, paired, mask))
    return HeadLoss(jnp.sum(loss), jnp.sum(nll), jnp.sum(kl))


def _kl_forward(config, share, params, hidden, taught, targets, paired, mask) -> Any:
    run = jax.value_and_grad(_head_kl(config, share, params), has_aux=True)
    (loss, (nll, kl)), slope = _chunked(run, hidden, (taught, targets, paired, mask))
    return HeadLoss(jnp.sum(loss), jnp.sum(nll), jnp.sum(kl)), _joined(slope, hidden)


def _kl_backward(config, share, slope, scales):
    return None, (slope * scales.loss).astype(slope.dtype), None, None, None, None


frozen_head_kl.defvjp(_kl_forward, _kl_backward)


def _head_kl(config: ModelConfig, share: float, params: dict[str, Any]) -> Callable[..., Any]:
    """(hidden, taught, targets, paired, mask) -> (loss, (nll, kl)), all sums."""

    def run(hidden, taught, targets, paired, mask):
        logits = head_logits(config, params, hidden)
        own = jax.nn.log_softmax(logits.astype(jnp.float32))
        told = jax.nn.log_softmax(head_logits(config, params, taught).astype(jnp.float32))
        nll = jnp.where(mask, token_nll(logits, targets), 0.0)
        kl = jnp.sum(jnp.exp(told) * (told - own), axis=-1)
        kl = jnp.where(paired & mask, kl, 0.0)
        loss = jnp.where(paired, 1 - share, 1.0) * nll + share * kl
        return jnp.sum(loss), (jnp.sum(nll), jnp.sum(kl))

    return run


def _chunked(run: Callable[..., Any], hidden: Array, others: tuple[Array, ...]) -> Any:
    """The results of `run(hidden, *others)` for each chunk of slots, with an axis of chunks.

    The last of `others` is the mask: zeros for a chunk in which it is False everywhere.
    """
    rows, slots = hidden.shape[:2]
    count = -(-slots // CHUNK)
    size = min(slots, CHUNK)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - slots)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(rows, count, size, *x.shape[2:]).swapaxes(0, 1)

    def chunk(inputs):
        hidden, *others = inputs

        def of_states(hidden):
            return run(hidden, *others)

        shapes = jax.eval_shape(of_states, hidden)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.cond(jnp.any(others[-1]), of_states, lambda _: zeros, hidden)

    return jax.lax.map(chunk, tuple(split(x) for x in (hidden, *others)))


def _joined(slope: Float[Array, "C B S D"], hidden: Float[Array, "B N D"]) -> Array:
    """The gradients of all chunks, as those of `hidden`."""
    rows, slots = hidden.shape[:2]
    return slope.swapaxes(0, 1).reshape(rows, slope.shape[0] * slope.shape[2], -1)[:, :slots]


def balance(
    gates: Float[Array, "P L E"], weight: float
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The balance term of a generator's loss (Eq. 9), and metrics of how even the gates are.

    Metrics: `cv` (before weighting), `usage` and mean gates (`gate_mass`) [L, E].
    """
    cv = squared_cv(gates)
    mass = jnp.mean(gates, axis=0)
    return weight * cv, {"cv": cv, "usage": expert_usage(gates), "gate_mass": mass}


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
