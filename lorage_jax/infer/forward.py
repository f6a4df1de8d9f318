"""Logits of a merged model, or of a base model with the adapters of one or several cards."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.errors import ConfigError
from lorage_jax.infer.gates import Gates, row_gates
from lorage_jax.models import model as models
from lorage_jax.models.experts import Experts, nameless
from lorage_jax.models.model import Model, require_model


def forward(
    model: Model,
    tokens: Any,
    attention_mask: Any = None,
    gates: Gates | None = None,
    pool: Experts | None = None,
) -> Float[Array, "B T V"]:
    """Computes float32 logits at every token.

    Args:
        tokens: token ids, [B, T] or [T].
        attention_mask: [B, T], 1 at real tokens and 0 at padding, which may be on either side.
        gates: adapters to apply without merging: a Card or an [L, E] array for all rows, or one per
            row as a list of Cards or a [B, L, E] array.
        pool: the experts that `gates` weight, `gen.pool` of the generator. Not needed for a Card
            returned by `specialize`, which carries its pool. Or experts with routers, without
            gates.

    Raises ConfigError for what is not token ids, ids outside the vocabulary or mismatched shapes,
    and WeightsError for a card made by another generator or for another edge.
    """
    require_model(model)
    tokens = _token_ids(tokens)
    mask = None if attention_mask is None else jnp.asarray(_mask(attention_mask, tokens.shape))
    pool, rows = row_gates(model, gates, pool, tokens.shape[0])
    return models.forward(model, tokens, mask, rows, nameless(pool))


def _token_ids(tokens: Any) -> Int[np.ndarray, "B T"]:
    """Token ids of one row or several. Raises ConfigError for anything else."""
    try:
        ids = np.atleast_2d(np.asarray(tokens))
    except ValueError:
        raise ConfigError(
            "the rows of tokens have different lengths; pad them, and pass an attention_mask."
        ) from None
    if ids.dtype.kind not in "iu" or ids.ndim != 2 or not ids.size:
        raise ConfigError(
            f"tokens are {ids.dtype} of shape {ids.shape}; expected token ids [B, T] or [T], whole "
            'numbers, 1 or more in each row, such as model.tokenizer(text)["input_ids"].'
        )
    return ids.astype(np.int32)


def _mask(attention_mask: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "B T"]:
    """The mask of tokens of this shape. Raises ConfigError for anything else."""
    try:
        mask = np.atleast_2d(np.asarray(np.asarray(attention_mask), bool))
    except ValueError:
        raise ConfigError(
            "attention_mask has rows of different lengths, or entries that are not numbers; "
            f"expected 1 or 0 for each of the tokens, which are {shape}."
        ) from None
    if mask.shape != shape:
        raise ConfigError(f"attention_mask is {mask.shape}; tokens are {shape}.")
    return mask
