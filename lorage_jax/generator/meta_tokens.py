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
from lorage_jax.models.decoder import Branches, Decoder
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
    tokens: Int[Array, "R S"],
    mask: Bool[Array, "R S"],
    *,
    remat: str,
    dropout_key: jax.Array | None,
    layout: Layout | None,
    texts: Branches | None = None,
    each: int = 1,
) -> Float[Array, "P L C"]:
    """Hidden states at the meta positions of left-padded prompts.

    With `texts`, every row of `tokens` holds `each` prompts, one behind the other; the meta tokens
    of all of them stand at its end.

    Taken after the cloud's final norm, or at the output of layer `config.hidden_layer`.
    `dropout_key` is given in training only.
    """
    dropout = config.dropout if dropout_key is not None else 0
    decoder = Decoder(cloud, remat=remat, dropout=dropout, layout=layout)
    count = each * meta.shape[0]
    collect = 0 if config.hidden_layer is None else count
    output = decoder.apply(
        {"params": cloud_params},
        tokens,
        mask,
        adapters=adapters or None,
        adapter_scale=config.cloud_alpha / config.cloud_rank if adapters else 0.0,
        suffix=jnp.tile(meta, (each, 1)),
        branches=None if texts is None else _with_meta(texts, mask, each, meta.shape[0]),
        head=False,
        collect=collect,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
    )
    if output.layers is not None:
        hidden = output.layers[config.hidden_layer]
    else:
        hidden = output.hidden[:, -count:]
    return hidden.astype(jnp.float32).reshape(-1, *meta.shape)


def _with_meta(texts: Branches, mask: Bool[Array, "R S"], each: int, layers: int) -> Branches:
    """The same rows with `layers` more slots behind them for every text, which go on from it."""
    number = jnp.arange(each)
    owned = mask[:, None] & (texts.text[:, None] == number[:, None])  # [R, each, S]
    positions = jnp.sum(owned, axis=-1)[..., None] + jnp.arange(layers)
    rows = mask.shape[0]
    text = jnp.broadcast_to(jnp.repeat(number, layers), (rows, each * layers))
    return Branches(
        None,
        jnp.concatenate([texts.positions, positions.reshape(rows, -1)], axis=1),
        jnp.concatenate([texts.text, text], axis=1),
    )
