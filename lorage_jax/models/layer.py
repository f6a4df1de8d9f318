"""One decoder layer: attention and an FFN, with optional low-rank updates of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lorage_jax import ops, rotary
from lorage_jax.config import ModelConfig
from lorage_jax.cudnn import computes_attention, cudnn_attention
from lorage_jax.flash import flash_attention
from lorage_jax.models import routing
from lorage_jax.models.bits import restored
from lorage_jax.models.context import Context
from lorage_jax.models.leaves import layer_leaves, parameter
from lorage_jax.sharding import Layout

_all_pairs = ContextVar("all_pairs", default=False)


class LayerInputs(flax.struct.PyTreeNode):
    """Inputs that differ between layers: the scan slices axis 0 of every leaf."""

    sliding: Bool[Array, "*L"]
    unrotated: Bool[Array, "*L"] | None = None
    gates: Float[Array, "*L_B_T E"] | None = None
    experts: dict[str, Any] | None = None  # the pool's arrays, if every layer has its own
    adapters: dict[str, Any] | None = None
    routers: dict[str, Any] | None = None  # of `Routed`, which then has the `experts`
    past: tuple[Float[Array, "*L_B_M K H"], Float[Array, "*L_B_M K H"]] | None = None
    cached: tuple[Shaped[Array, "*L_B_K S H"], Shaped[Array, "*L_B_K S H"]] | None = None


class LayerOutputs(flax.struct.PyTreeNode):
    """Outputs of one layer that the scan gathers; those not asked for are None."""

    last: Float[Array, "B n D"] | None = None  # of the last slots
    sums: dict[str, Any] | None = None  # of the routers
    keys: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]] | None = None  # and values


class Layer(nn.Module):
    """Attention and FFN with their norms; low-rank updates stay apart from the weights."""

    config: ModelConfig
    dtype: Any
    combine: str  # how the experts are combined
    scale: float  # factor on the experts' updates
    adapter_scale: float  # factor on the adapters' updates
    dropout: float  # rate on the inputs of low-rank updates; 0 outside training
    layout: Layout | None
    flash: bool  # compute attention with the kernels of `flash.py`
    input_first: bool = False  # the pool is one `for_decoding`
    top_k: int | None = None  # experts that a router of whole FFNs keeps per token
    collect: int = 0  # number of last slots whose outputs are gathered
    routing: bool = False  # gather the routers' sums
    keys: bool = False  # gather keys and values

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, inputs: LayerInputs
    ) -> tuple[Float[Array, "B T D"], LayerOutputs]:
        config = self.config
        leaves = layer_leaves(config)
        w = {name: parameter(self, name, leaf, self.dtype) for name, leaf in leaves.items()}
        if self.layout is not None:
            w = {name: self.layout.gathered(leaves[name], w[name]) for name in w}
            x = self.layout.rows(x)
        w = {name: restored(value) for name, value in w.items()}

        def norm(name, x):
            return norm_of(config, w, name, x) if name in w else x

        def add(x, y):
            return x + (y if config.residual_multiplier == 1 else y * config.residual_multiplier)

        y, keys = self._attention(w, norm("attn_norm", x), context, inputs)
        x = add(x, norm("attn_post_norm", y))
        y, sums = self._ffn(w, norm("ffn_norm", x), context, inputs)
        x = add(x, norm("ffn_post_norm", y))
        return x, LayerOutputs(
            last=x[:, x.shape[1] - self.collect :] if self.collect else None,
            sums=sums if self.routing else None,
            keys=keys if self.keys else None,
        )

    def _attention(self, w, x, context, inputs):
        config = self.config
        q, k, v = (ops.project(x, w[name]) for name in ("q", "k", "v"))
        if config.qkv_bias:
            q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
        q, k, v = (self._adapted(n, x, y, w, inputs) for n, y in zip("qkv", (q, k, v), strict=True))
        if config.qk_norm is not None:
            q, k = self._qk_norm(w["q_norm"], q), self._qk_norm(w["k_norm"], k)
        cos, sin = self._rotation(context, inputs)
        if cos is not None:
            q, k = rotary.rotate(q, cos, sin), rotary.rotate(k, cos, sin)
        keys = k, v
        if inputs.past is not None:
            k, v = (
                jnp.concatenate([old.astype(x.dtype), one], axis=1)
                for old, one in zip(inputs.past, keys, strict=True)
            )
        y = self._attend(q, k, v, context, inputs)
        x = y.reshape(*y.shape[:2], -1)
        y = ops.project(x, w["o"].reshape(-1, config.width))
        y = y + w["o_bias"] if config.out_bias else y
        return self._adapted("o", x, y, w, inputs), keys

    def _adapted(self, name, x, y, w, inputs):
        """y, the output of the linear layer `name`, with its adapter's update, if it has one."""
        if inputs.adapters is None or name not in inputs.adapters:
            return y
        adapter = inputs.adapters[name]
        b = adapter["b"]
        if "magnitude" in adapter:
            bias = w.get(f"{name}_bias", 0.0)
            ratio = ops.dora_ratio(w[name], adapter, self.adapter_scale)
            y, b = (y - bias) * ratio.astype(y.dtype) + bias, b * ratio
        a = adapter["a"].reshape(-1, b.shape[0])
        return y + ops.low_rank(self._drop(x), a, b, self.adapter_scale)

    def _rotation(self, context, inputs):
        """Cosine and sine of this layer's rotary angles; None if the model has no rope."""
        cos, sin = context.cos, context.sin
        if context.window_cos is not None:
            cos = jnp.where(inputs.sliding, context.window_cos, cos)
            sin = jnp.where(inputs.sliding, context.window_sin, sin)
        if inputs.unrotated is not None:
            cos, sin = jnp.where(inputs.unrotated, 1.0, cos), jnp.where(inputs.unrotated, 0.0, sin)
        return cos, sin

    def _qk_norm(self, scale, x):
        """Normalises [B, T, N, H] over each head, or over all heads together."""
        config, shape = self.config, x.shape
        if config.qk_norm == "width":
            x = x.reshape(*shape[:2], -1)
        x = ops.rms_norm(x, scale.reshape(-1), config.norm_eps, config.norm_offset)
        return x.reshape(shape)

    def _attend(self, q, k, v, context, inputs):
        config, sliding = self.config, inputs.sliding
        scale, softcap = config.query_scale, config.attn_softcap

        def of_layer(masks):
            if masks.window is None:
                return masks.all
            return jnp.where(sliding, masks.window, masks.all)

        if not self.flash or self.layout is None:
            mask = of_layer(context.masks)
            if inputs.cached is None:
                if computes_attention(q, k, v, softcap, self.layout):
                    return cudnn_attention(q, k, v, mask, scale, self.layout)
                blocks = causal_blocks(q.shape[1], self.layout)
                return ops.attention(q, k, v, mask, scale, softcap, blocks)
            cached_k, cached_v = (restored(x).astype(k.dtype) for x in inputs.cached)
            seen = of_layer(context.cached)
            return ops.attention_with_cache(q, k, v, cached_k, cached_v, seen, mask, scale, softcap)

        layout = self.layout

        def flash(window):
            return lambda q, k, v: flash_attention(
                q, k, v, context.segments, window, scale, softcap, layout
            )

        if not any(config.sliding) or config.window >= q.shape[1]:
            return flash(None)(q, k, v)
        return jax.lax.cond(sliding, flash(config.window), flash(None), q, k, v)

    def _ffn(self, w, x, context, inputs):
        """The FFN's output, and the sums of its routers."""
        config, sums = self.config, {}

        def linear(name, x):
            y = ops.project(x, w[name])
            return y + w[f"{name}_bias"] if config.ffn_bias else y

        def drop():
            key = self.make_rng("dropout") if self.dropout else None
            return None if key is None else routing.Drop(key, self.dropout)

        def gather(name, p, gates):
            if self.routing:
                sums[name] = routing.sums_of(p, gates, context.segments > 0)

        if inputs.routers is not None and self.top_k is not None:
            p = routing.probabilities(x, inputs.routers["ffn"])
            gates = routing.keep_top(p, self.top_k)
            gather("ffn", p, gates)
            y = routing.mixed_ffn(config, linear, x, inputs.experts, gates, self.scale, drop())
            return y, sums

        def project(name, x):
            y = linear(name, x)
            if inputs.routers is not None:
                p = routing.probabilities(x, inputs.routers[name])
                gather(name, p, p)
                return y + routing.mixed_update(x, inputs.experts[name], p, self.scale, drop())
            if inputs.gates is None:
                return self._adapted(name, x, y, w, inputs)
            experts = (inputs.experts or context.experts)[name]
            return y + ops.gated_low_rank(
                self._drop(x),
                experts["a"],
                experts["b"],
                inputs.gates,
                self.combine,
                self.scale,
                self.input_first,
            )

        hidden = ops.activation(project(config.projections[0], x), config.activation)
        return project("down", hidden * project("up", x) if config.gated else hidden), sums

    def _drop(self, x):
        if self.dropout == 0.0:
            return x
        return ops.dropout(x, self.make_rng("dropout"), self.dropout)


def causal_blocks(length: int, layout: Layout | None) -> int:
    """In how many blocks `length` queries attend: on a CPU, up to 4 of 64 or more; elsewhere 1.

    A CPU computes the hidden upper half of the scores like any others. Other devices have kernels
    that leave it out, and fewer, larger products suit them.
    """
    platform = jax.default_backend() if layout is None else layout.platform
    if platform != "cpu" or _all_pairs.get():
        return 1
    return max(1, min(4, length // 64))


@contextmanager
def all_pairs() -> Iterator[None]:
    """Programs traced in this block attend over all pairs, as arithmetic is counted.

    A count must not depend on the device that it is made on.
    """
    token = _all_pairs.set(True)
    try:
        yield
    finally:
        _all_pairs.reset(token)


def norm_of(
    config: ModelConfig, params: dict[str, Array], name: str, x: Float[Array, "*batch D"]
) -> Float[Array, "*batch D"]:
    """Applies the norm `name` of a layer, or of the model, over the width."""
    if config.norm_kind == "layer":
        return ops.layer_norm(x, params[name], params[f"{name}_bias"], config.norm_eps)
    return ops.rms_norm(x, params[name], config.norm_eps, config.norm_offset)
