"""One decoder for all families: parameters declared here, arithmetic in `ops.py`.

`Decoder(config).apply({"params": params}, tokens)` gives logits; `params` is a plain nested dict
(see `leaves.py`), so a merged edge is the same call with other params. Layers run under one scan;
the key/value cache rides in its carry, so that a donated cache is updated in place.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax import ops
from lorage_jax.config import ModelConfig
from lorage_jax.flash import flash_attention
from lorage_jax.models.families import FAMILIES
from lorage_jax.models.leaves import layer_leaves, model_leaves
from lorage_jax.sharding import Layout


@flax.struct.dataclass
class Cache:
    """Keys and values seen so far. `length` slots are filled, the same for every row.

    Rows are left-padded, so that one slot index serves the batch; `valid` marks real tokens.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    valid: Bool[Array, "B S"]
    length: Int[Array, ""]


@flax.struct.dataclass
class Branches:
    """Rows that hold texts and several continuations of each, side by side.

    `index`: 0 in a text, k in its k-th continuation; None: there are texts only. `positions` count
    within one's own branch. `text`: which of the row's texts a slot belongs to; without, a row
    holds one.
    """

    index: Int[Array, "B T"] | None
    positions: Int[Array, "B T"]
    text: Int[Array, "B T"] | None = None


@flax.struct.dataclass
class Context:
    """What every layer of one call shares."""

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]
    segments: Int[Array, "B S"]  # 0: padding; else a number of the text
    mask: Bool[Array, "B T S"]
    window_mask: Bool[Array, "B T S"] | None
    slot: Int[Array, ""] | None  # where the new keys go in the cache
    experts: Any  # the pool's arrays when all layers share them


class Layer(nn.Module):
    """Attention and gated FFN, pre-norm, with optional low-rank updates beside the weights."""

    config: ModelConfig
    dtype: Any
    combine: str  # of the experts
    scale: float  # of the experts
    adapter_scale: float  # of the q/v adapters
    dropout: float  # on the inputs of low-rank updates; 0 outside training
    collect: int  # how many last positions' outputs the scan gathers
    layout: Layout | None
    flash: bool  # attention by `flash.py`

    @nn.compact
    def __call__(self, carry, context: Context, inputs: dict[str, Any]):
        config, family = self.config, FAMILIES[self.config.family]
        w = {
            name: self.param(name, lambda key, leaf=leaf: leaf.initialise(key, self.dtype))
            for name, leaf in layer_leaves(config).items()
        }
        x, cache = carry
        if self.layout is not None:
            leaves = layer_leaves(config)
            w = {name: self.layout.gathered(leaves[name], w[name]) for name in w}
            x = self.layout.rows(x)

        def norm(name, x):
            return ops.rms_norm(x, w[name], config.norm_eps, family.norm_offset)

        y, cache = self._attention(w, norm("attn_norm", x), cache, context, inputs)
        x = x + (norm("attn_post_norm", y) if family.post_norms else y)
        y = self._ffn(w, norm("ffn_norm", x), context, inputs)
        x = x + (norm("ffn_post_norm", y) if family.post_norms else y)
        collected = x[:, x.shape[1] - self.collect :] if self.collect else None
        return (x, cache), collected

    def _attention(self, w, x, cache, context, inputs):
        config = self.config
        q = ops.project(x, w["q"])
        k = ops.project(x, w["k"])
        v = ops.project(x, w["v"])
        if config.qkv_bias:
            q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
        if inputs["adapters"] is not None:
            qa, va = inputs["adapters"]["q"], inputs["adapters"]["v"]
            q = q + ops.low_rank(self._drop(x), qa["a"], qa["b"], self.adapter_scale)
            v = v + ops.low_rank(self._drop(x), va["a"], va["b"], self.adapter_scale)
        q, k = ops.rope(q, context.cos, context.sin), ops.rope(k, context.cos, context.sin)
        if cache is not None:
            at = (inputs["index"], 0, context.slot, 0, 0)
            cache = cache.replace(
                k=jax.lax.dynamic_update_slice(cache.k, k[None].astype(cache.k.dtype), at),
                v=jax.lax.dynamic_update_slice(cache.v, v[None].astype(cache.v.dtype), at),
            )
            k = jax.lax.dynamic_index_in_dim(cache.k, inputs["index"], keepdims=False)
            v = jax.lax.dynamic_index_in_dim(cache.v, inputs["index"], keepdims=False)
        y = self._attend(q, k, v, context, inputs["sliding"])
        y = ops.project(y.reshape(*y.shape[:2], -1), w["o"].reshape(-1, config.width))
        return (y + w["o_bias"] if config.out_bias else y), cache

    def _attend(self, q, k, v, context, sliding):
        config = self.config
        if not self.flash:
            mask = context.mask
            if context.window_mask is not None:
                mask = jnp.where(sliding, context.window_mask, mask)
            return ops.attention(q, k, v, mask, config.query_scale, config.attn_softcap)

        def flash(window):
            kind = (window, config.query_scale, config.attn_softcap, self.layout)
            return lambda q, k, v: flash_attention(q, k, v, context.segments, *kind)

        if not any(config.sliding) or config.window >= q.shape[1]:
            return flash(None)(q, k, v)
        return jax.lax.cond(sliding, flash(config.window), flash(None), q, k, v)

    def _ffn(self, w, x, context, inputs):
        config = self.config

        def project(name, x):
            y = ops.project(x, w[name])
            if config.ffn_bias:
                y = y + w[f"{name}_bias"]
            if inputs["gates"] is None:
                return y
            experts = (inputs["experts"] or context.experts)[name]
            return y + ops.gated_low_rank(
                self._drop(x), experts["a"], experts["b"], inputs["gates"], self.combine, self.scale
            )

        hidden = ops.activation(project("gate", x), config.activation) * project("up", x)
        return project("down", hidden)

    def _drop(self, x):
        if self.dropout == 0.0:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, x.shape)
        return jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)


class Decoder(nn.Module):
    """Tokens to logits. `pool` is a `generator.pool.Pool`; `adapters` the cloud's q/v LoRA."""

    config: ModelConfig
    dtype: Any = jnp.float32  # of fresh parameters
    remat: str = "none"  # full: activations of a layer are computed again in the backward pass
    dropout: float = 0.0
    layout: Layout | None = None  # of the program that this is part of; None: as XLA likes

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"] | None,
        mask: Bool[Array, "B T"] | None = None,
        *,
        gates: Float[Array, "B *T L E"] | None = None,
        pool: Any = None,
        adapters: Any = None,
        adapter_scale: float = 0.0,
        suffix: Float[Array, "M D"] | None = None,
        cache: Cache | None = None,
        branches: Branches | None = None,
        output: str = "logits",
        at: Int[Array, "B N"] | None = None,
        collect: int = 0,
    ):
        """Logits [B, T, V] in float32, with a cache `(logits, cache)`.

        `mask` marks real tokens. `suffix` are M vectors appended behind every row (meta tokens), of
        which `branches` tell too. `gates` are a row's, or with an axis more a token's.
        `output`: `logits`, `last` (logits [B, V] of the last slot), or `hidden` (after the final
        norm, [B, T + M, D]); `at` leaves only these slots, [B, N, ...]. With `collect` = n,
        instead, the output of every layer at the last n slots, [L, B, n, D].
        """
        config, family = self.config, FAMILIES[self.config.family]
        leaves = model_leaves(config)

        def param(name):
            return self.param(name, lambda key: leaves[name].initialise(key, self.dtype))

        embed = param("embed")
        x = embed[tokens]
        if family.scaled_embedding:
            x = x * jnp.asarray(config.width**0.5, x.dtype)
        if mask is None:
            mask = jnp.ones(x.shape[:2], bool)
        if suffix is not None:
            rows, count = x.shape[0], suffix.shape[0]
            behind = jnp.broadcast_to(suffix.astype(x.dtype), (rows, *suffix.shape))
            x = jnp.concatenate([x, behind], axis=1)
            mask = jnp.concatenate([mask, jnp.ones((rows, count), bool)], axis=1)
        if self.layout is not None:
            x, mask = self.layout.rows(x), self.layout.rows(mask)

        context, cache = self._context(x, mask, pool, cache, branches)
        shared = pool is not None and pool.scope == "shared"
        flash = self.layout is not None and self.layout.flash and cache is None
        if branches is not None:
            # The kernels know texts, but no continuations; a window of theirs counts slots, and
            # what is appended stands apart from its text.
            flash &= branches.index is None and not (suffix is not None and any(config.sliding))
        inputs = {
            "index": jnp.arange(config.layers),
            "sliding": jnp.asarray(config.sliding),
            "gates": None if gates is None else jnp.moveaxis(gates, -2, 0),
            "experts": None if pool is None or shared else pool.experts,
            "adapters": adapters,
        }
        layer = nn.remat(Layer, prevent_cse=False) if self.remat == "full" else Layer
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0),
            length=config.layers,
        )(
            config,
            self.dtype,
            combine=pool.combine if pool is not None else "factors",
            scale=pool.scale if pool is not None else 1.0,
            adapter_scale=adapter_scale,
            dropout=self.dropout,
            collect=collect,
            layout=self.layout,
            flash=flash,
            name="layers",
        )
        (x, cache), collected = layers((x, cache), context, inputs)
        if collect:
            return collected
        if output == "last":
            x = x[:, -1:]
        if at is not None:
            x = jnp.take_along_axis(x, at[:, :, None], axis=1)
        x = ops.rms_norm(x, param("final_norm"), config.norm_eps, family.norm_offset)
        if output != "hidden":
            x = _logits(config, x, embed if config.tied_head else param("head"))
        if output == "last":
            x = x[:, 0]
        return x if cache is None else (x, cache)

    def _context(self, x, mask, pool, cache, branches):
        """Positions count real tokens; slots count columns. Rotary angles, masks, cache slots."""
        config, length = self.config, x.shape[1]
        start = 0 if cache is None else cache.length
        valid, before = mask, 0
        if cache is not None:
            before = jnp.sum(cache.valid, axis=1, keepdims=True, dtype=jnp.int32)
            valid = jax.lax.dynamic_update_slice(cache.valid, mask, (0, start))
            cache = cache.replace(valid=valid, length=start + length)
        positions = jnp.maximum(before + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        if branches is not None:
            positions = branches.positions
        frequencies = ops.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        cos, sin = ops.rope_table(positions, frequencies)
        slots = start + jnp.arange(length)

        def seen(window):
            if branches is not None:
                return ops.branch_mask(valid, positions, branches.index, window, branches.text)
            return ops.attention_mask(valid, slots, window)

        context = Context(
            cos=cos,
            sin=sin,
            segments=_segments(valid, branches),
            mask=seen(None),
            window_mask=seen(config.window) if any(config.sliding) else None,
            slot=None if cache is None else jnp.asarray(start, jnp.int32),
            experts=pool.experts if pool is not None and pool.scope == "shared" else None,
        )
        return context, cache


def _segments(valid: Bool[Array, "B S"], branches: Branches | None) -> Int[Array, "B S"]:
    if branches is None or branches.text is None:
        return valid.astype(jnp.int32)
    return jnp.where(valid, branches.text + 1, 0)


def head_logits(
    config: ModelConfig, params: dict[str, Any], hidden: Float[Array, "B N D"]
) -> Float[Array, "B N V"]:
    """Logits in float32 of states that the decoder gave as `hidden`."""
    return _logits(config, hidden, params["embed" if config.tied_head else "head"])


def _logits(config: ModelConfig, x: Array, head: Array) -> Array:
    shape = "btd,vd->btv" if config.tied_head else "btd,dv->btv"
    return ops.soft_cap(ops.einsum(shape, x, head, out=jnp.float32), config.final_softcap)


def new_cache(config: ModelConfig, rows: int, slots: int, dtype: Any) -> Cache:
    """An empty cache for `rows` rows of at most `slots` tokens."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
    return Cache(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),
        valid=jnp.zeros((rows, slots), bool),
        length=jnp.zeros((), jnp.int32),
    )
