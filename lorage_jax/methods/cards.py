"""Cards of methods: made with all that guards them, and placed, merged or side by side.

A method chooses among the experts of one pool, or makes a LoRA for each prompt: then a card's pool
is its only expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.errors import ConfigError
from lorage_jax.files.journal import request_key
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import merge, trained_template
from lorage_jax.hf.arithmetic import arithmetic
from lorage_jax.methods.method import Conditioning, Placement, beside, shared
from lorage_jax.methods.parts import recorded_turns
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model


def card_for(edge: Model, gates: np.ndarray, pool: Pool, **facts: Any) -> Card:
    """A card for an edge in the turns of the training, with `facts` about how it was made.

    The card knows these turns, and the arithmetic of the edge's config.
    """
    about, chat_template = recorded_turns(edge)
    known = {"edge_arithmetic": arithmetic(edge.config), "chat_template": chat_template}
    return Card(gates, pool.generator, edge.fingerprint, about | facts, pool, **known)


def place_cards(edge: Model, pool: Pool, rows: Sequence[Conditioning], maker: str) -> Placement:
    """Merges a single card for all rows; several stay unmerged, one per row.

    The edge answers in the turns of the cards' training. `maker` is the method that made the cards.
    Raises ConfigError if a row has no card.
    """
    cards = [row.card for row in rows if row.card is not None]
    if len(cards) < len(rows) or not rows:
        raise ConfigError(f"a row has no card; expected the conditionings of {maker}.prepare.")
    pool = beside(pool, edge)
    if shared(rows):
        return Placement(merge(edge, pool, cards[0]))
    return Placement(edge.replace(template=trained_template(edge, cards[0])), cards, pool)


def own_card(edge: Model, experts: Any, scale: float, name: str, origin: str) -> Card:
    """A card whose pool is one expert: `a` [L, 1, in, R] and `b` [L, 1, R, out] per projection.

    The edge is in the turns of the training; `name` is the identity of the LoRA, and `origin` says
    how it came about, after "The LoRA was".
    """
    pool = Pool(experts, "factors", scale, "per_layer", name)
    gates = np.ones((edge.config.layers, 1), np.float32)
    return card_for(edge, gates, pool, origin=origin)


def place_own(edge: Model, rows: Sequence[Conditioning]) -> Placement:
    """Merges a single LoRA for all rows; several stay unmerged, as the experts of one pool.

    The edge answers in the turns of the LoRAs' training. Raises ConfigError if a row has no LoRA.
    """
    cards = [row.card for row in rows if row.card is not None and row.card.pool is not None]
    if len(cards) < len(rows) or not rows:
        raise ConfigError("a row has no LoRA; expected the conditionings that `prepare` returned.")
    if shared(rows):
        assert cards[0].pool is not None
        return Placement(merge(edge, beside(cards[0].pool, edge), cards[0]))
    pool, own = side_by_side(cards)
    turns = trained_template(edge, cards[0])
    return Placement(edge.replace(template=turns), own, beside(pool, edge))


def side_by_side(cards: Sequence[Card]) -> tuple[Pool, list[Card]]:
    """A pool of the distinct experts of cards with one expert each, and cards that pick them."""
    distinct = list({card.generator: card for card in cards}.values())
    pools = [card.pool for card in distinct if card.pool is not None]
    experts = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1), *[pool.experts for pool in pools]
    )
    name = request_key("pool", *(card.generator for card in distinct))
    pool = pools[0].replace(experts=experts, generator=name)
    picked = {}
    for i, card in enumerate(distinct):
        gates = np.zeros((card.gates.shape[0], len(distinct)), np.float32)
        gates[:, i] = 1.0
        picked[card.generator] = dataclasses.replace(card, gates=gates, generator=name, pool=pool)
    return pool, [picked[card.generator] for card in cards]
