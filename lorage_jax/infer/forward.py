"""Logits of a model, merged or with the adapters of one or many cards."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.errors import ConfigError
from lorage_jax.infer.gates import Gates, row_gates
from lorage_jax.models import model as models
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model


def forward(
    model: Model,
    tokens: Any,
    attention_mask: Any = None,
    gates: Gates | None = None,
    pool: Pool | None = None,
) -> Float[Array, "B T V"]:
    """Logits in float32 at every token.

    Args:
        tokens: token ids, [B, T] or [T].
        attention_mask: [B, T], 1 at real tokens, which are left- or right-padded.
        gates: apply adapters without a merge: a Card or [L, E] for all rows, or one set per row, a
            list of Cards or [B, L, E].
        pool: the generator's `gen.pool`, which `gates` need. A Card fresh from `specialize` brings
            it.

    Raises ConfigError for token ids outside the vocabulary and for shapes that do not fit,
    WeightsError for a card of another generator or edge.
    """
    tokens = np.atleast_2d(np.asarray(tokens)).astype(np.int32)
    mask = None
    if attention_mask is not None:
        mask = jnp.atleast_2d(jnp.asarray(np.asarray(attention_mask), bool))
        if mask.shape != tokens.shape:
            raise ConfigError(f"attention_mask is {mask.shape}; tokens are {tokens.shape}.")
    pool, rows = row_gates(model, gates, pool, tokens.shape[0])
    return models.forward(model, tokens, mask, rows, pool)
