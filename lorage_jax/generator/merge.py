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
from jaxtyping import Array, Float

from lorage_jax import ops
from lorage_jax.errors import WeightsError
from lorage_jax.generator.card import Card
from lorage_jax.generator.pool import PROJECTIONS, Pool, assemble, assembled_rank
from lorage_jax.models.model import Model


@dataclass(frozen=True)
class MergeReport:
    """What the one cast cost. `largest_rounding`: max |cast(W + dW) - (W + dW)|.

    `unmoved`: share of the FFN weights whose value after the cast is what it was before.
    """

    largest_rounding: float
    unmoved: float
    weights: int


def merge(edge: Model, pool: Pool, card: Card) -> Model:
    """The edge specialised by `card`: same shapes, same dtype, `edge` untouched.

    Raises WeightsError when the card belongs to another generator or edge.
    """
    return merge_with_report(edge, pool, card)[0]


def merge_with_report(
    edge: Model, pool: Pool, card: Card, *, layerwise: bool = False, donate: bool = False
) -> tuple[Model, MergeReport]:
    """`merge`, and what rounding did.

    `donate` reuses the edge's FFN buffers: the edge must not be used afterwards. `layerwise` goes
    layer by layer, so that only one layer's update exists in float32 at a time.
    """
    if edge.card is not None:
        raise WeightsError("this model already has an adapter merged; merge into the base edge.")
    card.check(edge, pool)
    ffn = {name: edge.params["layers"][name] for name in PROJECTIONS}
    if layerwise and not donate:
        ffn = jax.tree.map(jnp.copy, ffn)
    factors = _assemble(pool, jnp.asarray(card.gates), assembled_rank(pool, card.gates))
    if layerwise:
        merged, rounding, unmoved = merge_layerwise(ffn, factors)
    else:
        merged, rounding, unmoved = merge_weights(ffn, factors, donate=donate)
    count = sum(w.size for w in merged.values())
    params = edge.params | {"layers": edge.params["layers"] | merged}
    report = MergeReport(float(rounding), float(unmoved) / count, count)
    return edge.replace(params=params, card=card), report


def merge_weights(
    ffn: dict[str, Array], factors: dict[str, tuple[Array, Array]], *, donate: bool
) -> tuple[dict[str, Array], Array, Array]:
    """All layers and projections in one call: `ffn` [L, I, O] plus A [L, I, P] @ B [L, P, O].

    Returns the weights in their own sharding, the largest rounding error and the number of
    weights that did not move.
    """
    shardings = tuple((name, ffn[name].sharding) for name in PROJECTIONS)
    return _compiled(shardings, donate)(ffn, factors)


@functools.lru_cache(maxsize=16)
def _compiled(shardings: tuple[tuple[str, Any], ...], donate: bool) -> Any:
    def merge_all(ffn, factors):
        merged, rounding, unmoved = {}, [], []
        for name in PROJECTIONS:
            merged[name], worst, still = _add(ffn[name], *factors[name])
            rounding.append(worst)
            unmoved.append(still)
        return merged, jnp.max(jnp.stack(rounding)), sum(unmoved)

    return jax.jit(
        merge_all,
        out_shardings=(dict(shardings), None, None),
        donate_argnums=(0,) if donate else (),
    )


def merge_layerwise(
    ffn: dict[str, Array], factors: dict[str, tuple[Array, Array]]
) -> tuple[dict[str, Array], Array, Array]:
    """As `merge_weights`, one layer of one projection at a time; consumes `ffn`."""
    merged, rounding, unmoved = dict(ffn), jnp.zeros(()), jnp.zeros(())
    for name in PROJECTIONS:
        a, b = factors[name]
        for layer in range(merged[name].shape[0]):
            merged[name], worst, still = _merge_layer(merged[name], a[layer], b[layer], layer)
            rounding, unmoved = jnp.maximum(rounding, worst), unmoved + still
    return merged, rounding, unmoved


@functools.partial(jax.jit, donate_argnums=(0,))
def _merge_layer(weights, a, b, layer):
    old = jax.lax.dynamic_index_in_dim(weights, layer)
    new, worst, still = _add(old, a[None], b[None])
    return jax.lax.dynamic_update_index_in_dim(weights, new[0], layer, 0), worst, still


def _add(
    weights: Float[Array, "L I O"], a: Float[Array, "L I P"], b: Float[Array, "L P O"]
) -> tuple[Array, Array, Array]:
    exact = weights.astype(jnp.float32) + ops.einsum("lip,lpo->lio", a, b)
    cast = exact.astype(weights.dtype)
    worst = jnp.max(jnp.abs(cast.astype(jnp.float32) - exact))
    # A float32 sum counts whole numbers exactly only to 2^24: count a row, then add the rows.
    still = jnp.sum(jnp.sum(cast == weights, axis=-1), dtype=jnp.float32)
    return cast, worst, still


_assemble = jax.jit(assemble, static_argnums=2)
