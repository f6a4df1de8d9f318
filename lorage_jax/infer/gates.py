"""Gates in every form that a user may give them, as checked arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator.card import Card
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

# The gates of one system prompt, [L, E]; and one for all rows, one per row, or [B, L, E].
RowGates: TypeAlias = Card | Array | np.ndarray
Gates: TypeAlias = RowGates | Sequence[RowGates]


def row_gates(
    model: Model, gates: Gates | None, pool: Pool | None, rows: int
) -> tuple[Pool | None, Float[Array, "B L E"] | None]:
    """The pool and the float32 gates of each of `rows` rows; (None, None) without gates.

    `pool`: by default the one that the first card brings. Raises ConfigError for gates without a
    pool or of a wrong shape, WeightsError for a model with a merged adapter, or a card of another
    generator or edge.
    """
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
        if isinstance(card, Card):
            card.check(model, pool)
    if isinstance(gates, Sequence):
        array = jnp.stack([_array(one) for one in gates])
    else:
        array = _array(gates)
    if array.ndim == 2:
        array = jnp.broadcast_to(array, (rows, *array.shape))
    want = (rows, model.config.layers, pool.count)
    if array.shape != want:
        raise ConfigError(
            f"gates have shape {array.shape}; expected {want} (rows, layers, experts)."
        )
    return pool, array


def _array(gates: RowGates) -> Array:
    return jnp.asarray(gates.gates if isinstance(gates, Card) else gates, jnp.float32)
