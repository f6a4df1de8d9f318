"""One decoder for all families: parameters declared here, arithmetic in `ops.py`.

`Decoder(config).apply({"params": params}, tokens).logits` is [B, T, V]; `params` is a plain nested
dict (see `leaves.py`), so a merged edge is the same call with other params. Layers run under one
scan; the key/value cache rides in its carry, so that a donated cache is updated in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorage_jax import ops
from lorage_jax.config import ModelConfig
from lorage_jax.models.cache import Cache
from lorage_jax.models.experts import Pool
from lorage_jax.models.layer import Context, Layer, LayerInputs
from lorage_jax.models.leaves import model_leaves
from lorage_jax.sharding import Layout


class Branches(flax.struct.PyTreeNode):
    """The texts of rows that hold several texts, or a text and several continuations of it.

    `index`: 0 in a text, k in its k-th continuation; None if there are texts only. `positions`
    count within a slot's own branch. `text`: the number of a slot's text within its row; None if
    every row holds one text.
    """

    index: Int[Array, "B T"] | None
    positions: Int[Array, "B T"]
    text: Int[Array, "B T"] | None = None


class Output(flax.struct.PyTreeNode):
    """Results of one `Decoder` call, at N slots per row.

    `logits`: float32; None with `head=False`. `cache`: None unless one was given. `hidden`: states
    after the final norm. `layers`: each layer's output at the last n slots, before the final norm;
    None unless `collect` = n asked for it.
    """

    logits: Float[Array, "B N V"] | None
    cache: Cache | None
    hidden: Float[Array, "B N D"]
    layers: Float[Array, "L B n D"] | None


class Decoder(nn.Module):
    """A language model: tokens to logits, hidden states and keys and values.

    Fields: `dtype` of freshly initialised parameters; `remat`, "full" to recompute a layer's
    activations in the backward pass; `dropout`, the rate on the inputs of low-rank updates, which
    needs `rngs={"dropout": key}`; `layout`, sharding constraints (None leaves placement to XLA).
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    dropout: float = 0.0
    layout: Layout | None = None

    if TYPE_CHECKING:  # flax's own annotation allows for mutable collections; there are none here

        def apply(self, variables: Any, *args: Any, rngs: Any = None, **inputs: Any) -> Output: ...

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "B S"],
        mask: Bool[Array | np.ndarray, "B S"] | None = None,
        *,
        gates: Float[Array, "B *T L E"] | None = None,
        pool: Pool | None = None,
        adapters: dict[str, dict[str, Array]] | None = None,
        adapter_scale: float = 0.0,
        suffix: Float[Array, "M D"] | None = None,
        cache: Cache | None = None,
        branches: Branches | None = None,
        at: Int[Array, "B N"] | None = None,
        last: bool = False,
        head: bool = True,
        collect: int = 0,
    ) -> Output:
        """Runs the model over S tokens per row, and M suffix vectors: T = S + M slots.

        Args:
            tokens: token ids.
            mask: True at real tokens, False at padding. Default: all are real.
            gates: the weights of the pool's experts in each row, or in each slot ([B, T, L, E]).
            adapters: LoRA factors `a`, `b` of the `q` and `v` projections, all layers stacked.
            adapter_scale: the factor on the adapters' updates, alpha / R.
            suffix: vectors appended to every row as if they were embedded tokens (meta tokens).
            cache: keys and values of earlier slots; the new slots are appended to it.
            branches: positions and visibility of all T slots, in rows of several texts.
            at: the N slots of each row to return. Default: all.
            last: return the last slot only (N = 1).
            head: compute logits.
            collect: how many last slots to return every layer's output of.
        """
        embed = self._parameter("embed")
        x, mask = self._embedded(embed, tokens, mask, suffix)
        context, cache = self._context(x, mask, pool, cache, branches)
        layers = self._layers(pool, adapter_scale, collect, self._flash(cache, branches, suffix))
        inputs = self._layer_inputs(gates, pool, adapters)
        (x, cache), collected = layers((x, cache), context, inputs)
        if last:
            x = x[:, -1:]
        if at is not None:
            x = jnp.take_along_axis(x, at[:, :, None], axis=1)
        hidden = self._final_norm(x)
        if not head:
            return Output(None, cache, hidden, collected)
        weights = embed if self.config.tied_head else self._parameter("head")
        return Output(_logits(self.config, hidden, weights), cache, hidden, collected)

    def _parameter(self, name: str) -> Array:
        """The parameter `name` outside the layers."""
        leaf = model_leaves(self.config)[name]
        return self.param(name, lambda key: leaf.initialise(key, self.dtype))

    def _final_norm(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        offset = self.config.norm_offset
        return ops.rms_norm(x, self._parameter("final_norm"), self.config.norm_eps, offset)

    def _embedded(
        self, embed: Array, tokens: Any, mask: Any, suffix: Array | None
    ) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
        """Embeddings of the tokens and the suffix behind them, and their mask."""
        x = embed[tokens]
        if self.config.scaled_embedding:
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)
        if mask is None:
            mask = jnp.ones(x.shape[:2], bool)
        if suffix is not None:
            rows, count = x.shape[0], suffix.shape[0]
            appended = jnp.broadcast_to(suffix.astype(x.dtype), (rows, *suffix.shape))
            x = jnp.concatenate([x, appended], axis=1)
            mask = jnp.concatenate([mask, jnp.ones((rows, count), bool)], axis=1)
        if self.layout is not None:
            x, mask = self.layout.rows(x), self.layout.rows(mask)
        return x, mask

    def _flash(self, cache: Cache | None, branches: Branches | None, suffix: Array | None) -> bool:
        """True if the kernels of `flash.py` can compute this call's attention.

        They know texts but not continuations. Their window counts slots, so it is wrong for a
        suffix, whose slots are not next to their text's in a row of several texts.
        """
        if self.layout is None or not self.layout.flash or cache is not None:
            return False
        if branches is None:
            return True
        return branches.index is None and (suffix is None or not any(self.config.sliding))

    def _layer_inputs(
        self, gates: Array | None, pool: Pool | None, adapters: dict[str, Any] | None
    ) -> LayerInputs:
        config = self.config
        return LayerInputs(
            index=jnp.arange(config.layers),
            sliding=jnp.asarray(config.sliding),
            gates=None if gates is None else jnp.moveaxis(gates, -2, 0),
            experts=None if pool is None or pool.scope == "shared" else pool.experts,
            adapters=adapters,
        )

    def _layers(
        self, pool: Pool | None, adapter_scale: float, collect: int, flash: bool
    ) -> nn.Module:
        """All layers as one scan over their stacked parameters."""
        layer = nn.remat(Layer, prevent_cse=False) if self.remat == "full" else Layer
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0),  # pyright: ignore[reportArgumentType]  flax takes trees
            length=self.config.layers,
        )
        return scanned(
            self.config,
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

    def _context(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        pool: Pool | None,
        cache: Cache | None,
        branches: Branches | None,
    ) -> tuple[Context, Cache | None]:
        """Rotary angles and masks of this call, and the cache with its slots marked.

        Positions count a row's real tokens; slots count columns, padding included.
        """
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

        def seen(window: int | None) -> Bool[Array, "B T S"]:
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
    """Float32 logits of hidden states (`Output.hidden`)."""
    return _logits(config, hidden, params["embed" if config.tied_head else "head"])


def _logits(config: ModelConfig, x: Array, head: Array) -> Array:
    shape = "btd,vd->btv" if config.tied_head else "btd,dv->btv"
    return ops.soft_cap(ops.einsum(shape, x, head, out=jnp.float32), config.final_softcap)
