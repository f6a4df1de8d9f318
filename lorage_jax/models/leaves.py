"""The parameter tree of a decoder: shape, logical axes and initialisation of every leaf.

Initialisation, sharding, loading and checkpoints all read this description.
The layer axis is axis 0 of every leaf under `layers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lorage_jax.config import ModelConfig


@dataclass(frozen=True)
class Leaf:
    """One array. `axes` has a logical name per dimension, which `sharding.py` maps to the mesh."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: str = "normal"

    def stack(self, layers: int) -> Leaf:
        """One such array per layer, stacked along a new first axis."""
        return replace(self, shape=(layers, *self.shape), axes=("layers", *self.axes))

    def initialise(self, key: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Draws a fresh value.

        `init` is `zeros`, `ones`, `unit` (std 1), `normal` (std 1/sqrt(fan-in)) or `kaiming`
        (uniform within 1/sqrt(fan-in), the initialisation of LoRA's A).
        """
        if self.init in ("zeros", "ones", "unit"):
            if self.init == "unit":
                return jax.random.normal(key, self.shape).astype(dtype)
            return jnp.full(self.shape, float(self.init == "ones"), dtype)
        bound = self.inputs**-0.5
        if self.init == "kaiming":
            return jax.random.uniform(key, self.shape, minval=-bound, maxval=bound).astype(dtype)
        return (jax.random.normal(key, self.shape) * bound).astype(dtype)

    @property
    def inputs(self) -> int:
        """Fan-in; for a leading head axis, heads times channels per head."""
        shape, axes = self.shape, self.axes
        while axes[0] in ("layers", "experts"):
            shape, axes = shape[1:], axes[1:]
        if axes[0] in ("vocab", "positions"):
            return shape[-1]
        return shape[0] * shape[1] if axes[0] == "heads" else shape[0]

    @property
    def matrix(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The (input, output) axes of a matrix, or of a stack with one per layer or expert.

        None for vectors and for tables with one row per token or position.
        """
        first = sum(axis in ("layers", "experts") for axis in self.axes)
        own = tuple(range(first, len(self.axes)))
        if not own or {"vocab", "positions"} & set(self.axes):
            return None
        count = 2 if self.axes[first] in ("heads", "kv_heads") else 1
        return (own[:count], own[count:]) if own[count:] else None


def parameter(module: nn.Module, name: str, leaf: Leaf, dtype: DTypeLike) -> jax.Array:
    """A module's parameter, freshly initialised by `init` and as it is given to `apply`.

    `Module.param` traces the initialisation in every `apply`, only to compare shapes: a sixth of
    the time that it takes to trace a decoder. Raises ValueError if the shape is another one.
    """
    if not module.has_variable("params", name):
        return module.param(name, lambda key: leaf.initialise(key, dtype))
    value = module.get_variable("params", name)
    if value.shape != leaf.shape:
        raise ValueError(f"the parameter {name} is {value.shape}; expected {leaf.shape}.")
    return value


def layer_leaves(config: ModelConfig) -> dict[str, Leaf]:
    """The leaves of one layer, without the layer axis."""
    d, f, h = config.width, config.ffn_width, config.head_dim
    n, k = config.heads, config.kv_heads
    leaves = {
        "q": Leaf((d, n, h), ("embed", "heads", "head_dim")),
        "k": Leaf((d, k, h), ("embed", "kv_heads", "head_dim")),
        "v": Leaf((d, k, h), ("embed", "kv_heads", "head_dim")),
        "o": Leaf((n, h, d), ("heads", "head_dim", "embed")),
        "up": Leaf((d, f), ("embed", "ffn")),
        "down": Leaf((f, d), ("ffn", "embed")),
    }
    if config.gated:
        leaves["gate"] = Leaf((d, f), ("embed", "ffn"))
    for block in ("attn", "ffn"):
        if config.pre_norms:
            leaves |= _norm(config, f"{block}_norm")
        if config.post_norms:
            leaves |= _norm(config, f"{block}_post_norm")
    if config.qk_norm is not None:
        leaves |= _qk_norms(config)
    if config.qkv_bias:
        leaves |= {
            "q_bias": Leaf((n, h), ("heads", "head_dim"), "zeros"),
            "k_bias": Leaf((k, h), ("kv_heads", "head_dim"), "zeros"),
            "v_bias": Leaf((k, h), ("kv_heads", "head_dim"), "zeros"),
        }
    if config.out_bias:
        leaves["o_bias"] = Leaf((d,), ("embed",), "zeros")
    if config.ffn_bias:
        inner = Leaf((f,), ("ffn",), "zeros")
        leaves |= {f"{name}_bias": inner for name in config.projections}
        leaves["down_bias"] = Leaf((d,), ("embed",), "zeros")
    return leaves


def _norm(config: ModelConfig, name: str) -> dict[str, Leaf]:
    """The leaves of a norm over the width."""
    scale = Leaf((config.width,), ("embed",), "zeros" if config.norm_offset else "ones")
    if config.norm_kind == "rms":
        return {name: scale}
    return {name: scale, f"{name}_bias": Leaf((config.width,), ("embed",), "zeros")}


def _qk_norms(config: ModelConfig) -> dict[str, Leaf]:
    """The scales of the norms of q and k."""
    init = "zeros" if config.norm_offset else "ones"
    if config.qk_norm == "head":
        one = Leaf((config.head_dim,), ("head_dim",), init)
        return {"q_norm": one, "k_norm": one}
    return {
        "q_norm": Leaf((config.heads, config.head_dim), ("heads", "head_dim"), init),
        "k_norm": Leaf((config.kv_heads, config.head_dim), ("kv_heads", "head_dim"), init),
    }


def model_leaves(config: ModelConfig) -> dict[str, Any]:
    """The leaves of a whole model; those under `layers` have a leading layer axis."""
    one = layer_leaves(config)
    leaves: dict[str, Any] = {
        "embed": Leaf((config.vocab_size, config.width), ("vocab", "embed")),
        "layers": {name: leaf.stack(config.layers) for name, leaf in one.items()},
        **_norm(config, "final_norm"),
    }
    if config.position_offset is not None:
        rows = config.max_positions + config.position_offset
        leaves["positions"] = Leaf((rows, config.width), ("positions", "embed"))
    if not config.tied_head:
        leaves["head"] = Leaf((config.width, config.vocab_size), ("embed", "vocab"))
    return leaves


def count_values(leaves: Any) -> int:
    """The number of values in all leaves of a tree."""
    each = jax.tree.leaves(leaves, is_leaf=lambda leaf: isinstance(leaf, Leaf))
    return sum(math.prod(leaf.shape) for leaf in each)


def initialise(leaves: Any, key: jax.Array, dtype: DTypeLike = jnp.float32) -> Any:
    """Initialises a tree of leaves; each leaf gets a key of its own."""
    flat, tree = jax.tree.flatten(leaves)
    keys = jax.random.split(key, max(len(flat), 1))
    return tree.unflatten(
        [leaf.initialise(k, dtype) for leaf, k in zip(flat, keys[: len(flat)], strict=True)]
    )
