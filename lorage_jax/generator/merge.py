"""Adds an assembled LoRA to the edge's FFN weights: `W + (alpha / R) A B` (Eq. 1 and 8).

In float32, cast once. The sum over experts and ranks is whole on every device, so no sharding of
the weights needs a collective here.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax import ops
from lorage_jax.chips import GIB
from lorage_jax.config import PROJECTIONS
from lorage_jax.fields import require, require_kind
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.generator.card import Card
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.generator.rounding import check_finite, choose_rounding, round_to
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model, require_model

LAYERWISE_BYTES = GIB  # larger FFN weights are merged layer by layer, to save memory
SAMPLED = 16  # `auto` looks at one output column in so many before it chooses a rounding

# For each projection: A [L, I, P] and B [L, P, O].
Factors = dict[str, tuple[Array, Array]]


@dataclass(frozen=True)
class MergeReport:
    """Cost of storing the sum in the dtype of the weights.

    Attributes:
        largest_rounding: max |cast(W + dW) - (W + dW)|.
        share_unmoved: share of the FFN weights that are equal before the merge and after the cast.
        weights: the number of FFN weights.
        update_kept: `1 - |applied - dW|^2 / |dW|^2` over the FFN weights, where `applied` is the
            difference of the weights after and before.
        rounding: nearest or stochastic.
        kl_lost: mean KL divergence, in nats per token, of the merged model's next-token
            distribution from that of the unmerged one; None if no tokens were compared.
        kl_effect: the same between the base model and the unmerged one: the card's whole effect.
        kl_lost_gguf: like kl_lost, for the weights of the GGUF file; None if none was written.
    """

    largest_rounding: float
    share_unmoved: float
    weights: int
    update_kept: float | None = None
    rounding: str = "nearest"
    kl_lost: float | None = None
    kl_effect: float | None = None
    kl_lost_gguf: float | None = None


@dataclass(frozen=True)
class Cast:
    """How the merged weights are stored: dtype (None: the edge's own), rounding and its seed.

    Raises ConfigError for an unknown dtype, and for a seed that is not a whole number of 32 bits.
    """

    dtype: str | None = None
    rounding: str = "auto"
    seed: int = 0

    def __post_init__(self):
        known = f"one of {', '.join(DTYPES)}, or None"
        require_kind(self.dtype, str | None, "dtype", known)
        require(self.dtype in (None, *DTYPES), f"dtype is {self.dtype!r}; expected {known}.")
        whole = f"a whole number, 0 to {2**32 - 1}"
        require_kind(self.seed, Integral, "seed", whole, unlike=bool)
        require(0 <= self.seed < 2**32, f"seed is {self.seed}; expected {whole}.")

    @property
    def name(self) -> str:
        """Its part of the identity of merged weights."""
        seed = [str(self.seed)] if self.rounding == "stochastic" else []
        return " ".join([self.rounding, *seed, *([self.dtype] if self.dtype else [])])

    def target(self, weights: Array) -> Any:
        """The dtype in which these weights are stored."""
        return weights.dtype if self.dtype is None else jnp.dtype(self.dtype)

    def resolved(self, ffn: dict[str, Array], factors: Factors) -> Cast:
        """The same cast with `auto` replaced by nearest or stochastic, see `choose_rounding`."""
        first = next(iter(ffn.values()))
        rounding = choose_rounding(
            self.rounding, first.dtype, self.target(first), lambda: _kept_of_sample(ffn, factors)
        )
        return dataclasses.replace(self, rounding=rounding)

    def keys(self, ffn: dict[str, Array]) -> dict[str, Array | None]:
        """A random key for each layer of each projection [L]; None for rounding to nearest."""
        if self.rounding != "stochastic":
            return dict.fromkeys(ffn)
        first = jax.random.key(self.seed)
        return {
            name: jax.random.split(
                jax.random.fold_in(first, PROJECTIONS.index(name)), weights.shape[0]
            )
            for name, weights in ffn.items()
        }


def merge(
    edge: Model,
    pool: Pool,
    card: Card,
    *,
    layerwise: bool | None = None,
    donate: bool = False,
    rounding: str = "auto",
    seed: int = 0,
    dtype: str | None = None,
) -> Model:
    """The edge specialised by `card`: same shapes, `edge` untouched.

    Args:
        layerwise: go layer by layer, so that only one layer's update exists in float32 at a time;
            by default for FFN weights above LAYERWISE_BYTES.
        donate: reuse the edge's FFN buffers, unless `dtype` is another; the edge must not be used
            afterwards.
        rounding: how the float32 sum becomes the weights' dtype: nearest, stochastic, or auto, the
            one that is expected to lose less (see `choose_rounding`).
        seed: seed of stochastic rounding; a seed gives the same weights on any devices.
        dtype: dtype of the merged FFN weights; the edge's own by default.

    Raises WeightsError when the card belongs to another generator or edge, or when a sum overflows
    float16, and ConfigError for an unknown rounding or dtype, a seed beyond 32 bits, or an argument
    of another kind.
    """
    check_kinds(edge, pool, card)
    ffn, factors = _parts(edge, pool, card)
    cast = Cast(dtype, rounding, seed).resolved(ffn, factors)
    return _merged(edge, card, ffn, factors, cast, layerwise, donate)


def trained_template(edge: Model, card: Card) -> Any:
    """The turns in which a card's edge answers; None if the edge has no tokenizer."""
    return None if edge.tokenizer is None else card.turns(edge)


def merge_with_report(
    edge: Model,
    pool: Pool,
    card: Card,
    *,
    layerwise: bool | None = None,
    donate: bool = False,
    rounding: str = "auto",
    seed: int = 0,
    dtype: str | None = None,
) -> tuple[Model, MergeReport]:
    """`merge` with rounding statistics, which are slower than the merge itself."""
    check_kinds(edge, pool, card)
    ffn, factors = _parts(edge, pool, card)
    cast = Cast(dtype, rounding, seed).resolved(ffn, factors)
    found = _statistics(ffn, factors, cast)
    count = sum(weights.size for weights in ffn.values())
    report = MergeReport(
        largest_rounding=max(float(jnp.max(one[0])) for one in found),
        share_unmoved=sum(int(np.asarray(one[1], np.int64).sum()) for one in found) / count,
        weights=count,
        update_kept=_update_kept(found),
        rounding=cast.rounding,
    )
    return _merged(edge, card, ffn, factors, cast, layerwise, donate), report


def check_kinds(edge: Any, pool: Any, card: Any) -> None:
    """Raises ConfigError unless these are a Model, a Pool and one Card."""
    require_model(edge, "edge")
    require_kind(pool, Pool, "pool", "the experts of the card's generator: gen.pool")
    require_kind(card, Card, "card", "one Card; take those of a list one by one, each by itself")


def _parts(edge: Model, pool: Pool, card: Card) -> tuple[dict[str, Array], Factors]:
    """The checked edge's FFN weights, and the factors of what is added to them."""
    card.check(edge, pool)
    factors = compiled_assemble(
        pool.replace(generator=""), jnp.asarray(card.gates), assembled_rank(pool, card.gates)
    )
    return {name: edge.params["layers"][name] for name in edge.config.projections}, factors


def _merged(
    edge: Model,
    card: Card,
    ffn: dict[str, Array],
    factors: Factors,
    cast: Cast,
    layerwise: bool | None,
    donate: bool,
) -> Model:
    keys = cast.keys(ffn)
    if layerwise is None:
        layerwise = sum(weights.nbytes for weights in ffn.values()) > LAYERWISE_BYTES
    same = all(cast.target(weights) == weights.dtype for weights in ffn.values())
    if layerwise and same:
        merged = _merge_layerwise(ffn if donate else jax.tree.map(jnp.copy, ffn), factors, keys)
    elif layerwise:
        merged = _merge_layerwise_to(cast, ffn, factors, keys)
    else:
        shardings = tuple((name, weights.sharding) for name, weights in ffn.items())
        dtype = None if same else cast.dtype
        merged = compiled_merge(shardings, donate and same, dtype)(ffn, factors, keys)
    check_finite(merged)
    params = edge.params | {"layers": edge.params["layers"] | merged}
    turns = trained_template(edge, card)
    return edge.replace(params=params, card=card, cast=cast.name, template=turns)


@functools.lru_cache(maxsize=16)
def compiled_merge(
    shardings: tuple[tuple[str, Any], ...], donate: bool, dtype: str | None = None
) -> Any:
    """All layers and projections in one call: `ffn` [L, I, O] plus A [L, I, P] @ B [L, P, O].

    The program takes the weights, their factors and, to round stochastically, keys [L] by name. The
    weights keep their sharding; `dtype` is theirs by default.
    """

    def merge_all(ffn, factors, keys=None):
        keys = dict.fromkeys(ffn) if keys is None else keys
        merged = {}
        for name, _ in shardings:
            a, b = factors[name]
            merged[name] = _add(ffn[name], a, b, keys[name], dtype)
        return merged

    donated = (0,) if donate else ()
    return jax.jit(merge_all, out_shardings=dict(shardings), donate_argnums=donated)


def _merge_layerwise(
    ffn: dict[str, Array], factors: Factors, keys: dict[str, Array | None]
) -> dict[str, Array]:
    """The merge, one layer of one projection at a time; consumes `ffn`."""
    merged = dict(ffn)
    for name in merged:
        step = _compiled_layer(merged[name].sharding)
        for layer in range(merged[name].shape[0]):
            a, b = (factor[layer] for factor in factors[name])
            own = keys[name]
            key = None if own is None else own[layer]
            merged[name] = step(merged[name], a, b, layer, key)
    return merged


@functools.lru_cache(maxsize=16)
def _compiled_layer(sharding: Any) -> Any:
    def merge_layer(weights, a, b, layer, key=None):
        old = jax.lax.dynamic_index_in_dim(weights, layer)
        new = _add(old, a[None], b[None], None if key is None else key[None])
        return jax.lax.dynamic_update_index_in_dim(weights, new[0], layer, 0)

    return jax.jit(merge_layer, out_shardings=sharding, donate_argnums=(0,))


def _merge_layerwise_to(
    cast: Cast, ffn: dict[str, Array], factors: Factors, keys: dict[str, Array | None]
) -> dict[str, Array]:
    """`_merge_layerwise` into new weights of the cast's dtype."""
    merged = {}
    for name, weights in ffn.items():
        target = cast.target(weights)
        made = jnp.zeros(weights.shape, target, device=weights.sharding)
        step, own = _compiled_layer_to(weights.sharding, target), keys[name]
        for layer in range(weights.shape[0]):
            a, b = (factor[layer] for factor in factors[name])
            made = step(made, weights, a, b, layer, None if own is None else own[layer])
        merged[name] = made
    return merged


@functools.lru_cache(maxsize=16)
def _compiled_layer_to(sharding: Any, dtype: Any) -> Any:
    def merge_layer(made, weights, a, b, layer, key=None):
        old = jax.lax.dynamic_index_in_dim(weights, layer)
        new = _add(old, a[None], b[None], None if key is None else key[None], dtype)
        return jax.lax.dynamic_update_index_in_dim(made, new[0], layer, 0)

    return jax.jit(merge_layer, out_shardings=sharding, donate_argnums=(0,))


def _add(
    weights: Float[Array, "L I O"],
    a: Float[Array, "L I P"],
    b: Float[Array, "L P O"],
    keys: Any,
    dtype: Any = None,
) -> Float[Array, "L I O"]:
    """W + A B in float32, cast once; with keys [L], stochastically."""
    exact, target = exact_sum(weights, a, b), jnp.dtype(dtype or weights.dtype)
    if keys is None:
        return round_to(exact, target, None)
    return jax.vmap(lambda one, key: round_to(one, target, key))(exact, keys)


def exact_sum(
    weights: Float[Array, "L ..."], a: Float[Array, "L *I P"], b: Float[Array, "L P *O"]
) -> Float[Array, "L ..."]:
    """W + A B in float32, layer by layer; inputs and outputs may have several axes (heads)."""
    inputs, outputs = "ijk"[: a.ndim - 2], "xyz"[: b.ndim - 2]
    spec = f"l{inputs}p,lp{outputs}->l{inputs}{outputs}"
    return weights.astype(jnp.float32) + ops.einsum(spec, a, b)


def _statistics(ffn: dict[str, Array], factors: Factors, cast: Cast) -> list[Any]:
    """The results of `_compiled_statistics`, one per projection."""
    keys = cast.keys(ffn)
    return [
        _compiled_statistics(cast.target(weights))(weights, *factors[name], keys[name])
        for name, weights in ffn.items()
    ]


def _kept_of_sample(ffn: dict[str, Array], factors: Factors) -> float:
    """`update_kept` of rounding to nearest, on one output column in SAMPLED."""
    sample = {name: weights[..., ::SAMPLED] for name, weights in ffn.items()}
    few = {name: (a, b[..., ::SAMPLED]) for name, (a, b) in factors.items()}
    return _update_kept(_statistics(sample, few, Cast(rounding="nearest")))


def _update_kept(statistics: list[Any]) -> float:
    lost, intended = (
        sum(float(np.asarray(one[i], np.float64).sum()) for one in statistics) for i in (2, 3)
    )
    return 1.0 if intended == 0 else 1.0 - lost / intended


@functools.lru_cache(maxsize=4)
def _compiled_statistics(dtype: Any) -> Any:
    """Returns a program of (weights, A, B, keys or None) with four results for each layer.

    The largest |cast - exact| [L], the number of weights of each column that did not move [L, O],
    and the sums of squares of `applied - dW` [L] and of dW [L].
    """

    def statistics(weights, a, b, keys):
        def one(layer):
            weights, a, b, *key = layer
            cast = _add(weights[None], a[None], b[None], key[0][None] if key else None, dtype)[0]
            wide, old = cast.astype(jnp.float32), weights.astype(jnp.float32)
            update = exact_sum(jnp.zeros_like(old)[None], a[None], b[None])[0]
            error = jnp.max(jnp.abs(wide - exact_sum(weights[None], a[None], b[None])[0]))
            still = jnp.sum(wide == old, axis=0, dtype=jnp.int32)
            return error, still, jnp.sum((wide - old - update) ** 2), jnp.sum(update**2)

        return jax.lax.map(one, (weights, a, b, *([] if keys is None else [keys])))

    return jax.jit(statistics)


compiled_assemble = jax.jit(assemble, static_argnums=2)
