"""The training loss: cross entropy on target tokens plus a balance term on the gates (Eq. 9-10)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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


def squared_cv(gates: Float[Array, "P L E"]) -> Float[Array, ""]:
    """(sigma / mu)^2 of each expert's summed gates in the batch, per layer, mean over layers.

    Unbiased variance over the experts. Equation 9 without its factor alpha.
    """
    importance = jnp.sum(gates, axis=0)
    mean = jnp.mean(importance, axis=-1)
    return jnp.mean(jnp.var(importance, axis=-1, ddof=1) / jnp.square(mean))


def expert_usage(gates: Float[Array, "P L E"]) -> Float[Array, "L E"]:
    """How often each expert is selected, per layer; sums to K over the experts."""
    return jnp.mean(gates > 0, axis=0)
