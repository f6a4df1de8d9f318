"""A loaded language model and its one forward function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.files.fingerprint import fingerprint, fingerprint_arrays
from lorage_jax.models.decoder import Decoder


@dataclass(frozen=True, eq=False)
class Model:
    """`params` is a plain nested dict (`models/leaves.py`). `source` is the folder it came from.

    A merged model holds the `card` whose adapter is in its weights.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Any
    source: Path | None = None
    card: Any = None

    def replace(self, **changes: Any) -> Model:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def dtype(self) -> Any:
        """The dtype of the weights."""
        return self.params["embed"].dtype

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the base weights: a hash over the tensors of the folder."""
        if self.source is not None:
            return fingerprint(self.source)
        flat = jax.tree_util.tree_flatten_with_path(self.params)[0]
        return fingerprint_arrays(
            {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}
        )


def forward(
    model: Model,
    tokens: Any,
    attention_mask: Any = None,
    gates: Any = None,
    pool: Any = None,
) -> Float[Array, "B T V"]:
    """Logits [B, T, V] in float32 of tokens [B, T] (or [T]).

    `attention_mask` [B, T]: 1 for real tokens, left- or right-padded. `gates`: a Card, [L, E] for
    all rows, a list of Cards or [B, L, E] with one set per row. They answer without any merge, but
    need the generator's `pool` (`gen.pool`), which only a Card fresh from `specialize` brings.
    """
    tokens = np.atleast_2d(np.asarray(tokens)).astype(np.int32)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < model.config.vocab_size:
        raise ConfigError(
            f"token ids run from {tokens.min()} to {tokens.max()}; this model's vocabulary is "
            f"0 to {model.config.vocab_size - 1}. Was another tokenizer used?"
        )
    mask = None
    if attention_mask is not None:
        mask = jnp.atleast_2d(jnp.asarray(np.asarray(attention_mask), bool))
        if mask.shape != tokens.shape:
            raise ConfigError(f"attention_mask is {mask.shape}; tokens are {tokens.shape}.")
    pool, rows = row_gates(model, gates, pool, tokens.shape[0])
    return _forward(model.config, model.params, tokens, mask, pool, rows)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens, mask, pool, gates):
    decoder = Decoder(config)
    return decoder.apply({"params": params}, tokens, mask, gates=gates, pool=pool).logits


def row_gates(model: Model, gates: Any, pool: Any, rows: int) -> tuple[Any, Array | None]:
    """Gates in any accepted form as [B, L, E] float32, checked against the pool and the model."""
    if gates is None:
        return None, None
    cards = gates if isinstance(gates, Sequence) else [gates]
    if pool is None and cards:
        pool = getattr(cards[0], "pool", None)
    if pool is None:
        raise ConfigError(
            "gates were given without the experts they weigh; pass pool=gen.pool of the "
            "generator, or merge them first: lg.merge(edge, gen.pool, card)."
        )
    if model.card is not None:
        raise WeightsError("this model already has an adapter merged; use the base edge model.")
    for card in cards:
        if hasattr(card, "check"):
            card.check(model, pool)
    if isinstance(gates, Sequence):
        array = jnp.stack([jnp.asarray(getattr(g, "gates", g), jnp.float32) for g in gates])
    else:
        array = jnp.asarray(getattr(gates, "gates", gates), jnp.float32)
    if array.ndim == 2:
        array = jnp.broadcast_to(array, (rows, *array.shape))
    want = (rows, model.config.layers, pool.count)
    if array.shape != want:
        raise ConfigError(
            f"gates have shape {array.shape}; expected {want} (rows, layers, experts)."
        )
    return pool, array
