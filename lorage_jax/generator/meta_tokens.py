"""Meta tokens and the cloud's q/v adapters: one causal pass reads a prompt, [P, L, C] comes out.

Meta token i stands for edge layer i. All L follow the prompt, so each sees the whole prompt and
the meta tokens before it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import Leaf
from lorage_jax.sharding import Layout


def meta_leaf(cloud: ModelConfig, edge: ModelConfig) -> Leaf:
    """[L, C]: one trained vector an edge layer, at the scale of the cloud's embeddings."""
    return Leaf((edge.layers, cloud.width), ("layers", "cloud"), "unit")


def adapter_leaves(config: GeneratorConfig, cloud: ModelConfig) -> dict[str, dict[str, Leaf]]:
    """LoRA factors of the cloud's q and v projections, layers in front; empty for rank 0."""
    if config.cloud_rank == 0:
        return {}
    c, r, h = cloud.width, config.cloud_rank, cloud.head_dim
    leaves = {}
    for name, axis, heads in (("q", "heads", cloud.heads), ("v", "kv_heads", cloud.kv_heads)):
        a = Leaf((c, r), ("embed", "rank"), "kaiming")
        b = Leaf((r, heads, h), ("rank", axis, "head_dim"), "zeros")
        leaves[name] = {"a": a.stack(cloud.layers), "b": b.stack(cloud.layers)}
    return leaves


def read_prompts(
    config: GeneratorConfig,
    cloud: ModelConfig,
    cloud_params: dict[str, Any],
    meta: Float[Array, "L C"],
    adapters: dict[str, Any],
    tokens: Int[Array, "P S"],
    mask: Bool[Array, "P S"],
    *,
    remat: str,
    dropout_key: jax.Array | None,
    layout: Layout | None,
) -> Float[Array, "P L C"]:
    """Hidden states at the meta positions of left-padded prompts.

    Taken after the cloud's final norm, or at the output of layer `config.hidden_layer`.
    `dropout_key` is given in training only.
    """
    dropout = config.dropout if dropout_key is not None else 0
    decoder = Decoder(cloud, remat=remat, dropout=dropout, layout=layout)
    layers = meta.shape[0]
    collect = 0 if config.hidden_layer is None else layers
    out = decoder.apply(
        {"params": cloud_params},
        tokens,
        mask,
        adapters=adapters or None,
        adapter_scale=config.cloud_alpha / config.cloud_rank if adapters else 0.0,
        suffix=meta,
        output="hidden",
        collect=collect,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
    )
    hidden = out[config.hidden_layer] if collect else out[:, -layers:]
    return hidden.astype(jnp.float32)
