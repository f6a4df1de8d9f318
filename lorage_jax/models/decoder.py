"""One decoder for all families: parameters declared here, arithmetic in `ops.py`.

`Decoder(config).apply({"params": params}, tokens).logits` is [B, T, V]; `params` is a plain nested
dict (see `leaves.py`), so a merged edge is the same call with other params. All layers run in one
scan, which reads the key/value cache; it is extended after that, and in place if it is donated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorage_jax import ops
from lorage_jax.config import ModelConfig
from lorage_jax.models.bits import TABLE, restored
from lorage_jax.models.cache import Cache, Past
from lorage_jax.models.context import Branches, make_context
from lorage_jax.models.experts import Experts, Pool, Routed
from lorage_jax.models.layer import Layer, LayerInputs, LayerOutputs, norm_of
from lorage_jax.models.leaves import model_leaves, parameter
from lorage_jax.sharding import Layout


class Output(flax.struct.PyTreeNode):
    """Results of one `Decoder` call, at N slots per row.

    Attributes:
        logits: float32; None with `head=False`.
        cache: the cache that was passed, with this call's slots appended; None without one.
        hidden: states after the final norm.
        layers: each layer's output at the last n = `collect` slots, before the final norm; None
            with `collect=0`.
        routing: with `routing`, sums over the real slots of each row, by router: of an expert's
            `probability`, and of the slots that `kept` it.
        past: with `keys`, the keys and values of all T slots.
    """

    logits: Float[Array, "B N V"] | None
    cache: Cache | None
    hidden: Float[Array, "B N D"]
    layers: Float[Array, "L B n D"] | None
    routing: dict[str, dict[str, Float[Array, "L B E"]]] | None = None
    past: Past | None = None


class Decoder(nn.Module):
    """A language model: maps tokens to logits, hidden states, keys and values.

    Attributes:
        config: the model's shape and variants.
        dtype: dtype of freshly initialised parameters.
        remat: "full" recomputes each layer's activations in the backward pass; "none" keeps them.
        dropout: rate on the inputs of low-rank updates; above 0 it needs `rngs={"dropout": key}`.
        layout: sharding constraints; None leaves placement to XLA.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    dropout: float = 0.0
    layout: Layout | None = None

    if TYPE_CHECKING:  # flax's own annotation allows for mutable collections, unused here

        def apply(self, variables: Any, *args: Any, rngs: Any = None, **inputs: Any) -> Output: ...

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "B S"],
        mask: Bool[Array | np.ndarray, "B S"] | None = None,
        *,
        gates: Float[Array, "B *T L E"] | None = None,
        pool: Experts | None = None,
        adapters: dict[str, dict[str, Array]] | None = None,
        adapter_scale: float = 0.0,
        prefix: Float[Array, "B P D"] | None = None,
        prefix_mask: Bool[Array, "B P"] | None = None,
        suffix: Float[Array, "M D"] | None = None,
        cache: Cache | None = None,
        past: Past | None = None,
        branches: Branches | None = None,
        at: Int[Array, "B N"] | None = None,
        last: bool = False,
        head: bool = True,
        collect: int = 0,
        routing: bool = False,
        keys: bool = False,
    ) -> Output:
        """Runs the model over P prefix vectors, S tokens and M suffix vectors per row.

        Args:
            tokens: token ids.
            mask: True at real tokens, False at padding. Default: all are real.
            gates: weights of the pool's experts, [B, L, E], or [B, T, L, E] without a prefix.
            pool: the experts that `gates` combines, or experts with routers, without gates.
            adapters: LoRA factors `a` [L, *in, R] and `b` [L, R, *out] by the names of the linear
                layers' leaves; with a `magnitude` [L, *out], a DoRA. Not for those of the pool.
            adapter_scale: factor on the adapters' updates, alpha / R.
            prefix: embeddings in front of each row's tokens (a soft prompt), from position 0 on.
            prefix_mask: False where a row's prefix is padding. Default: nowhere. Not with branches.
            suffix: vectors appended to every row as if they were embedded tokens (meta tokens).
            cache: keys and values of earlier slots, which the new ones, tokens alone, extend.
            past: keys and values of earlier slots, which the new ones only read; not with a cache.
            branches: positions and visibility of all T slots, for rows of several texts; after a
                prefix or a `Past` of one text, positions count from there, with one text per row.
            at: the N slots of each row to return. Default: all T = S + M after the prefix.
            last: return the last slot only (N = 1).
            head: compute logits.
            collect: number of last slots at which to return the output of every layer.
            routing: return the routers' sums; not with a cache or a past.
            keys: return keys and values.
        """
        embed, lead = self._parameter("embed"), 0 if prefix is None else prefix.shape[1]
        assert prefix_mask is None or branches is None, "branches stand after a whole prefix"
        x, mask = self._embedded(embed, tokens, mask, prefix, prefix_mask, suffix)
        shared = _shared_experts(pool)
        context, positions = make_context(self.config, mask, cache, past, branches, lead, shared)
        x = self._at_positions(x, positions)
        flash = past is None and self._flash(cache, branches, prefix, suffix)
        keys |= cache is not None
        layers = self._layers(pool, adapter_scale, flash, collect, routing, keys)
        x, out = layers(x, context, self._layer_inputs(gates, pool, adapters, past, cache))
        hidden = self._final_norm(_returned(x, lead, last, at))
        logits = self._logits(hidden, embed) if head else None
        kept = _kept(out, mask, positions, branches)
        return Output(logits, _extended(cache, kept), hidden, out.last, out.sums, kept)

    def _logits(self, hidden: Float[Array, "B N D"], embed: Array) -> Float[Array, "B N V"]:
        weights = embed if self.config.tied_head else self._parameter("head")
        return _logits(self.config, hidden, weights)

    def _parameter(self, name: str) -> Array:
        """A parameter outside the layers, by name."""
        return parameter(self, name, model_leaves(self.config)[name], self.dtype)

    def _final_norm(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        names = [name for name in model_leaves(self.config) if name.startswith("final_norm")]
        params = {name: self._parameter(name) for name in names}
        return norm_of(self.config, params, "final_norm", x)

    def _embedded(
        self,
        embed: Array,
        tokens: Any,
        mask: Any,
        prefix: Array | None,
        prefix_mask: Array | None,
        suffix: Array | None,
    ) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
        """Embeddings of the tokens, between prefix and suffix, and their mask."""
        if self.has_variable("params", TABLE):
            x = restored(self.get_variable("params", TABLE)[tokens]).astype(jnp.float32)
        else:
            x = embed[tokens]
        if self.config.embedding_scale != 1:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        if mask is None:
            mask = jnp.ones(x.shape[:2], bool)
        if prefix is not None:
            x = jnp.concatenate([prefix.astype(x.dtype), x], axis=1)
            if prefix_mask is None:
                prefix_mask = jnp.ones(prefix.shape[:2], bool)
            mask = jnp.concatenate([prefix_mask, mask], axis=1)
        if suffix is not None:
            rows, count = x.shape[0], suffix.shape[0]
            appended = jnp.broadcast_to(suffix.astype(x.dtype), (rows, *suffix.shape))
            x = jnp.concatenate([x, appended], axis=1)
            mask = jnp.concatenate([mask, jnp.ones((rows, count), bool)], axis=1)
        if self.layout is not None:
            x, mask = self.layout.rows(x), self.layout.rows(mask)
        return x, mask

    def _at_positions(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Adds the learned positions, if the model has any."""
        if self.config.position_offset is None:
            return x
        return x + self._parameter("positions")[positions + self.config.position_offset]

    def _flash(
        self,
        cache: Cache | None,
        branches: Branches | None,
        prefix: Array | None,
        suffix: Array | None,
    ) -> bool:
        """True if the kernels of `flash.py` can compute this call's attention.

        They support several texts per row, but not continuations. Their window counts slots, which
        is wrong for a suffix: in a row of several texts, its slots are not next to its text's. So
        it is for a prefix, from which padding may separate the tokens.
        """
        if self.layout is None or not self.layout.flash or cache is not None:
            return False
        if prefix is not None and any(self.config.sliding):
            return False
        if branches is None:
            return True
        return branches.index is None and (suffix is None or not any(self.config.sliding))

    def _layer_inputs(
        self,
        gates: Array | None,
        pool: Experts | None,
        adapters: dict[str, Any] | None,
        past: Past | None,
        cache: Cache | None,
    ) -> LayerInputs:
        config = self.config
        routed = pool if isinstance(pool, Routed) else None
        if routed is not None:
            assert gates is None and adapters is None, "experts with routers take neither"
            adapters = routed.adapters
        return LayerInputs(
            sliding=jnp.asarray(config.sliding),
            unrotated=None if config.unrotated is None else jnp.asarray(config.unrotated),
            gates=None if gates is None else jnp.moveaxis(gates, -2, 0),
            experts=None if pool is None or _shared_experts(pool) else pool.experts,
            adapters=adapters,
            routers=None if routed is None else routed.routers,
            past=None if past is None else (past.k, past.v),
            cached=None if cache is None else (cache.k, cache.v),
        )

    def _layers(
        self,
        pool: Experts | None,
        adapter_scale: float,
        flash: bool,
        collect: int,
        routing: bool,
        keys: bool,
    ) -> nn.Module:
        """One scan over the stacked parameters of all layers."""
        layer = nn.remat(Layer, prevent_cse=False) if self.remat == "full" else Layer
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0),  # pyright: ignore[reportArgumentType]  flax takes trees
            length=self.config.layers,
            # The check traces the layer twice, and dropout's keys are numbered in both.
            check_constancy_invariants=self.dropout > 0.0,
        )
        return scanned(
            self.config,
            self.dtype,
            combine=pool.combine if isinstance(pool, Pool) else "factors",
            input_first=isinstance(pool, Pool) and pool.input_first,
            scale=pool.scale if pool is not None else 1.0,
            adapter_scale=pool.scale if isinstance(pool, Routed) else adapter_scale,
            dropout=self.dropout,
            layout=self.layout,
            flash=flash,
            top_k=pool.top_k if isinstance(pool, Routed) else None,
            collect=collect,
            routing=routing,
            keys=keys,
            name="layers",
        )


def _shared_experts(pool: Experts | None) -> dict[str, Any] | None:
    """The pool's arrays, if all layers share them."""
    return pool.experts if isinstance(pool, Pool) and pool.scope == "shared" else None


def _kept(
    out: LayerOutputs,
    mask: Bool[Array, "B T"],
    positions: Int[Array, "B T"],
    branches: Branches | None,
) -> Past | None:
    """The keys and values that the layers returned, if any."""
    if out.keys is None:
        return None
    k, v = out.keys
    return Past(k, v, mask, positions, None if branches is None else branches.text)


def _extended(cache: Cache | None, new: Past | None) -> Cache | None:
    return None if cache is None or new is None else cache.extended(new)


def _returned(
    x: Float[Array, "B T D"], lead: int, last: bool, at: Int[Array, "B N"] | None
) -> Float[Array, "B N D"]:
    """The slots to return: the last one, those `at`, or all after a prefix of `lead` slots."""
    if last or lead:
        x = x[:, -1:] if last else x[:, lead:]
    return x if at is None else jnp.take_along_axis(x, at[:, :, None], axis=1)


def head_logits(
    config: ModelConfig, params: dict[str, Any], hidden: Float[Array, "B N D"]
) -> Float[Array, "B N V"]:
    """Float32 logits of hidden states (`Output.hidden`)."""
    return _logits(config, hidden, params["embed" if config.tied_head else "head"])


def _logits(config: ModelConfig, x: Array, head: Array) -> Array:
    if ops.mixed(x, head):
        logits = ops.project(x, head, transposed=config.tied_head)
    else:
        shape = "btd,vd->btv" if config.tied_head else "btd,dv->btv"
        logits = ops.einsum(shape, x, head, out=jnp.float32)
    if config.logits_divisor != 1:
        logits = logits / config.logits_divisor
    return ops.soft_cap(logits, config.final_softcap)
