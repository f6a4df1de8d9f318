"""Adds an assembled LoRA to the edge's FFN weights: `W + (alpha / R) A B` (Eq. 1 and 8).

In float32, cast once. The sum over experts and ranks is whole on every device, so no sharding of
the weights needs a collective here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lorage_jax import ops
from lorage_jax.chips import GIB
from lorage_jax.errors import WeightsError
from lorage_jax.generator.card import Card
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

LAYERWISE_BYTES = GIB  # larger FFN weights are merged layer by layer, to save memory

# Of each projection: A [L, I, P] and B [L, P, O].
Factors = dict[str, tuple[Array, Array]]


@dataclass(frozen=True)
class MergeReport:
    """Cost of the one cast. `largest_rounding`: max |cast(W + dW) - (W + dW)|.

    `share_unmoved`: share of the FFN weights that are equal before the merge and after the cast.
    """

    largest_rounding: float
    share_unmoved: float
    weights: int


def merge(
    edge: Model, pool: Pool, card: Card, *, layerwise: bool | None = None, donate: bool = False
) -> Model:
    """The edge specialised by `card`: same shapes, same dtype, `edge` untouched.

    `donate` reuses the edge's FFN buffers instead: the edge must not be used afterwards.
    `layerwise` goes layer by layer, so that only one layer's update exists in float32 at a time;
    by default for FFN weights above LAYERWISE_BYTES.
    Raises WeightsError when the card belongs to another generator or edge.
    """
    ffn, factors = _parts(edge, pool, card)
    if layerwise is None:
        layerwise = sum(weights.nbytes for weights in ffn.values()) > LAYERWISE_BYTES
    if layerwise:
        merged = merge_layerwise(ffn if donate else jax.tree.map(jnp.copy, ffn), factors)
    else:
        merged = merge_weights(ffn, factors, donate=donate)
    params = edge.params | {"layers": edge.params["layers"] | merged}
    return edge.replace(params=params, card=card, template=trained_template(edge, card))


def trained_template(edge: Model, card: Card) -> Any:
    """The turns in which a card's edge answers; None if the edge has no tokenizer."""
    return None if edge.tokenizer is None else card.turns(edge)


def merge_with_report(
    edge: Model, pool: Pool, card: Card, *, layerwise: bool | None = None, donate: bool = False
) -> tuple[Model, MergeReport]:
    """`merge` with rounding statistics, which are slower than the merge itself."""
    ffn, factors = _parts(edge, pool, card)
    found = [_rounding(weights, *factors[name]) for name, weights in ffn.items()]
    count = sum(weights.size for weights in ffn.values())
    report = MergeReport(
        largest_rounding=max(float(jnp.max(worst)) for worst, _ in found),
        share_unmoved=sum(int(np.asarray(still, np.int64).sum()) for _, still in found) / count,
        weights=count,
    )
    return merge(edge, pool, card, layerwise=layerwise, donate=donate), report


def _parts(edge: Model, pool: Pool, card: Card) -> tuple[dict[str, Array], Factors]:
    """The checked edge's FFN weights, and the factors of what is added to them."""
    if edge.card is not None or edge.loras:
        raise WeightsError("this model already has an adapter merged; merge into the base edge.")
    card.check(edge, pool)
    factors = compiled_assemble(pool, jnp.asarray(card.gates), assembled_rank(pool, card.gates))
    return {name: edge.params["layers"][name] for name in edge.config.projections}, factors


def merge_weights(ffn: dict[str, Array], factors: Factors, *, donate: bool) -> dict[str, Array]:
    """All layers and projections in one call: `ffn` [L, I, O] plus A [L, I, P] @ B [L, P, O].

    The weights keep their sharding.
    """
    shardings = tuple((name, weights.sharding) for name, weights in ffn.items())
    return compiled_merge(shardings, donate)(ffn, factors)


@functools.lru_cache(maxsize=16)
def compiled_merge(shardings: tuple[tuple[str, Any], ...], donate: bool) -> Any:
    def merge_all(ffn, factors):
        return {name: _add(ffn[name], *factors[name]) for name, _ in shardings}

    donated = (0,) if donate else ()
    return jax.jit(merge_all, out_shardings=dict(shardings), donate_argnums=donated)


def merge_layerwise(ffn: dict[str, Array], factors: Factors) -> dict[str, Array]:
    """`merge_weights` one layer of one projection at a time; consumes `ffn`."""
    merged = dict(ffn)
    for name in merged:
        step = _compiled_layer(merged[name].sharding)
        for layer in range(merged[name].shape[0]):
            a, b = (factor[layer] for factor in factors[name])
            merged[name] = step(merged[name], a, b, layer)
    return merged


@functools.lru_cache(maxsize=16)
def _compiled_layer(sharding: Any) -> Any:
    def merge_layer(weights, a, b, layer):
        old = jax.lax.dynamic_index_in_dim(weights, layer)
        new = _add(old, a[None], b[None])
        return jax.lax.dynamic_update_index_in_dim(weights, new[0], layer, 0)

    return jax.jit(merge_layer, out_shardings=sharding, donate_argnums=(0,))


def _add(
    weights: Float[Array, "L I O"], a: Float[Array, "L I P"], b: Float[Array, "L P O"]
) -> Float[Array, "L I O"]:
    """W + A B in float32, cast once."""
    return exact_sum(weights, a, b).astype(weights.dtype)


def exact_sum(
    weights: Float[Array, "L ..."], a: Float[Array, "L *I P"], b: Float[Array, "L P *O"]
) -> Float[Array, "L ..."]:
    """W + A B in float32, layer by layer; inputs and outputs may have several axes (heads)."""
    inputs, outputs = "ijk"[: a.ndim - 2], "xyz"[: b.ndim - 2]
    spec = f"l{inputs}p,lp{outputs}->l{inputs}{outputs}"
    return weights.astype(jnp.float32) + ops.einsum(spec, a, b)


@jax.jit
def _rounding(
    weights: Float[Array, "L I O"], a: Float[Array, "L I P"], b: Float[Array, "L P O"]
) -> tuple[Float[Array, "L"], Int[Array, "L O"]]:
    """Layer by layer: the worst |cast - exact|, and how many of each column did not move."""

    def one(layer):
        weights, a, b = layer
        exact = exact_sum(weights[None], a[None], b[None])[0]
        cast = exact.astype(weights.dtype)
        error = jnp.max(jnp.abs(cast.astype(jnp.float32) - exact))
        return error, jnp.sum(cast == weights, axis=0, dtype=jnp.int32)

    return jax.lax.map(one, (weights, a, b))


compiled_assemble = jax.jit(assemble, static_argnums=2)
