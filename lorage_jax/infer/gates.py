"""Converts gates from every form that the public functions accept into checked arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.errors import ConfigError, listed
from lorage_jax.fields import require_kind
from lorage_jax.generator.card import Card, require_base
from lorage_jax.models.experts import Experts, Pool, Routed
from lorage_jax.models.model import Model

# RowGates: the gates of one system prompt, [L, E]. Gates: one set for all rows, a sequence with one
# set per row, or a [B, L, E] array.
RowGates: TypeAlias = Card | Array | np.ndarray
Gates: TypeAlias = RowGates | Sequence[RowGates]


def row_gates(
    model: Model, gates: Gates | None, pool: Experts | None, rows: int
) -> tuple[Experts | None, Float[Array, "B L E"] | None]:
    """Returns the pool and the float32 gates of `rows` rows, or (None, None) without gates.

    `pool` defaults to the pool that the first card carries. Experts with routers of their own need
    no gates, and may be beside any model. Raises ConfigError for gates without a pool, of another
    kind or with the wrong shape, and WeightsError for a model that already has an adapter merged or
    for a card made by another generator or for another edge.
    """
    if isinstance(pool, Routed):
        if gates is not None:
            raise ConfigError("gates were given for experts that routers choose; leave them out.")
        return pool, None
    if gates is None:
        return None, None
    cards = each_of(gates)
    if pool is not None:
        require_kind(pool, Pool, "pool", "the experts of the card's generator: gen.pool")
    experts: Pool | None = pool
    if experts is None and cards:
        experts = getattr(cards[0], "pool", None)
    if experts is None:
        raise ConfigError(
            "gates were given without the experts that they weigh; pass the generator's pool "
            "(pool=gen.pool), or merge first: lg.merge(edge, gen.pool, card)."
        )
    require_base(model)
    for card in cards:
        if isinstance(card, Card):
            card.check(model, experts)
    want = (rows, model.config.layers, experts.count)
    array = _stacked(cards, want) if isinstance(gates, Sequence) else _array(gates)
    if array.ndim == 2:
        array = jnp.broadcast_to(array, (rows, *array.shape))
    if array.shape != want:
        raise ConfigError(
            f"gates have shape {array.shape}; expected {want} (rows, layers, experts)."
        )
    return experts, array


def each_of(gates: Any) -> Sequence[Any]:
    """The gates of a sequence, or those given alone. Raises ConfigError for another kind."""
    cards = gates if isinstance(gates, Sequence) and not isinstance(gates, str) else [gates]
    for card in cards:
        kinds = Card | Array | np.ndarray | list | tuple
        require_kind(card, kinds, "one of gates", "a Card, as lg.load_card(path) returns it")
    return cards


def _stacked(cards: Sequence[Any], want: tuple[int, int, int]) -> Array:
    """Gates given one by one as one array. Raises ConfigError unless their shapes are equal."""
    arrays = [_array(card) for card in cards]
    shapes = list(dict.fromkeys(array.shape for array in arrays))
    if len(shapes) != 1:
        found = f"have the shapes {listed(list(map(str, shapes)), 4)}" if shapes else "are empty"
        raise ConfigError(
            f"gates {found}; expected one for each of {want[0]} rows, of shape {want[1:]} (layers, "
            "experts)."
        )
    return jnp.stack(arrays)


def _array(gates: Any) -> Array:
    try:
        return jnp.asarray(gates.gates if isinstance(gates, Card) else gates, jnp.float32)
    except (TypeError, ValueError):
        raise ConfigError(
            "one of gates is no array of numbers; expected a Card, or an array of shape (layers, "
            "experts)."
        ) from None


def distinct_gates(gates: Gates | None, count: int) -> tuple[list[RowGates] | None, list[int]]:
    """The distinct gates, and the index of those that each of `count` requests uses."""
    if gates is None:
        return None, [0] * count
    each_of(gates)  # raises for another kind
    if not isinstance(gates, Sequence) and (isinstance(gates, Card) or gates.ndim != 3):
        return [gates], [0] * count
    gates = list(gates)
    if len(gates) != count:
        raise ConfigError(f"{len(gates)} gates for {count} requests; expected one for each.")
    if not gates:
        return None, []
    first: dict[int, int] = {}
    which = [first.setdefault(id(one), len(first)) for one in gates]
    return list({id(one): one for one in gates}.values()), which
