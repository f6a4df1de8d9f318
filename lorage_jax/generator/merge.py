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
        merged, worst, still = merge_layerwise(ffn, factors)
    else:
        merged, worst, still = merge_weights(ffn, factors, donate=donate)
    rounding = max(float(jnp.max(x)) for x in worst.values())
    count = sum(w.size for w in merged.values())
    unmoved = sum(float(jnp.sum(x)) for x in still.values()) / count
    params = edge.params | {"layers": edge.params["layers"] | merged}
    return edge.replace(params=params, card=card), MergeReport(rounding, unmoved, count)


# What a projection's merge gives, by projection: the weights, and `worst` and `still` of `_add`.
Merged = tuple[dict[str, Array], dict[str, Array], dict[str, Array]]


def merge_weights(
    ffn: dict[str, Array], factors: dict[str, tuple[Array, Array]], *, donate: bool
) -> Merged:
    """All layers and projections in one call: `ffn` [L, I, O] plus A [L, I, P] @ B [L, P, O].

    The weights keep their sharding.
    """
    shardings = tuple((name, ffn[name].sharding) for name in PROJECTIONS)
    return _compiled(shardings, donate)(ffn, factors)


@functools.lru_cache(maxsize=16)
def _compiled(shardings: tuple[tuple[str, Any], ...], donate: bool) -> Any:
    def merge_all(ffn, factors):
        out = {name: _add(ffn[name], *factors[name], sharding) for name, sharding in shardings}
        return tuple({name: values[i] for name, values in out.items()} for i in range(3))

    return jax.jit(
        merge_all,
        out_shardings=(dict(shardings),) * 3,
        donate_argnums=(0,) if donate else (),
    )


def merge_layerwise(ffn: dict[str, Array], factors: dict[str, tuple[Array, Array]]) -> Merged:
    """As `merge_weights`, one layer of one projection at a time; consumes `ffn`."""
    merged, worst, still = dict(ffn), {}, {}
    for name in PROJECTIONS:
        step = _compiled_layer(merged[name].sharding)
        for layer in range(merged[name].shape[0]):
            a, b = (factor[layer] for factor in factors[name])
            merged[name], highest, count = step(merged[name], a, b, layer)
            worst[name] = jnp.maximum(worst[name], highest) if layer else highest
            still[name] = still[name] + count if layer else count
    return merged, worst, still


@functools.lru_cache(maxsize=16)
def _compiled_layer(sharding: Any) -> Any:
    def merge_layer(weights, a, b, layer):
        old = jax.lax.dynamic_index_in_dim(weights, layer)
        new, worst, still = _add(old, a[None], b[None], sharding)
        return jax.lax.dynamic_update_index_in_dim(weights, new[0], layer, 0), worst, still

    return jax.jit(merge_layer, out_shardings=(sharding,) * 3, donate_argnums=(0,))


def _add(
    weights: Float[Array, "L I O"],
    a: Float[Array, "L I P"],
    b: Float[Array, "L P O"],
    sharding: Any,
) -> tuple[Array, Array, Array]:
    """W + A B, cast; and of each device's block of it, the worst rounding and how many stayed.

    By blocks, because one number for all of them would take a collective.
    """
    exact = weights.astype(jnp.float32) + ops.einsum("lip,lpo->lio", a, b)
    cast = exact.astype(weights.dtype)
    size = sharding.shard_shape(weights.shape)
    split = [x for n, m in zip(weights.shape, size, strict=True) for x in (n // m, m)]
    error = jnp.abs(cast.astype(jnp.float32) - exact).reshape(split)
    # A float32 sum counts whole numbers exactly only to 2^24: count a row, then add the rows.
    same = jnp.sum((cast == weights).reshape(split), axis=5)
    return cast, jnp.max(error, axis=(1, 3, 5)), jnp.sum(same, axis=(1, 3), dtype=jnp.float32)


_assemble = jax.jit(assemble, static_argnums=2)
