"""Meta tokens and the cloud's q/v adapters: one causal pass turns prompts into states [P, L, C].

Meta token i stands for edge layer i. All L follow the prompt, so each attends to the whole prompt
and to the meta tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.data.batches import Rows
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder, Output
from lorage_jax.models.leaves import Leaf
from lorage_jax.sharding import Layout


def meta_leaf(cloud: ModelConfig, edge: ModelConfig) -> Leaf:
    """Leaf [L, C]: one trained vector per edge layer, at the scale of the cloud's embeddings."""
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


class Prompts(flax.struct.PyTreeNode):
    """System prompts as the cloud reads them, padded on the left.

    Attributes:
        chunks: rows of token ids, each chunk padded to its own length.
        per_row: prompts in a row; more than 1 only if rows are packed.
    """

    chunks: tuple[Rows, ...]
    per_row: int = flax.struct.field(pytree_node=False, default=1)


@dataclass(frozen=True)
class CloudReader:
    """How the cloud reads prompts: hashable, so that it can be a static argument of a program.

    Attributes:
        config: switches of the generator.
        cloud: the cloud's configuration.
        remat: `full` computes activations again in the backward pass.
        layout: sharding constraints; None leaves placement to XLA.
        trains: True if gradients of the states are taken. Without adapters, the prompt's keys and
            values are then constants, and only the meta tokens have a backward pass.
    """

    config: GeneratorConfig
    cloud: ModelConfig
    remat: str = "none"
    layout: Layout | None = None
    trains: bool = False

    def read(
        self,
        params: dict[str, Any],
        trained: dict[str, Any],
        prompts: Prompts,
        key: jax.Array | None = None,
    ) -> Float[Array, "P L C"]:
        """Hidden states at the meta positions of every prompt, float32; each chunk is read once.

        They are taken after the cloud's final norm, or at the output of layer
        `config.hidden_layer`.

        Args:
            params: the cloud's frozen parameters.
            trained: `meta` [L, C] and `adapters` are used.
            prompts: P prompts in all.
            key: for dropout, in training only.
        """
        read = []
        for i, rows in enumerate(prompts.chunks):
            own = None if key is None else jax.random.fold_in(key, i)
            read.append(self._chunk(params, trained, rows, prompts.per_row, own))
        return jnp.concatenate(read)

    def _chunk(
        self,
        params: dict[str, Any],
        trained: dict[str, Any],
        rows: Rows,
        per_row: int,
        key: jax.Array | None,
    ) -> Float[Array, "p L C"]:
        config, meta, adapters = self.config, trained["meta"], trained["adapters"]
        dropout = config.dropout if key is not None else 0.0
        decoder = Decoder(self.cloud, remat=self.remat, dropout=dropout, layout=self.layout)
        count, layer = per_row * meta.shape[0], config.hidden_layer
        tokens, mask, past = rows.tokens, rows.mask, None
        branches = _with_meta(rows, per_row, meta.shape[0])
        if self.trains and not adapters:
            own, branches = _split(branches, tokens.shape[1])
            prompt: Output = decoder.apply(
                {"params": params}, tokens, mask, branches=own, head=False, keys=True
            )
            tokens, mask, past = tokens[:, :0], mask[:, :0], prompt.past
        output: Output = decoder.apply(
            {"params": params},
            tokens,
            mask,
            adapters=adapters or None,
            adapter_scale=config.cloud_alpha / config.cloud_rank if adapters else 0.0,
            suffix=jnp.tile(meta, (per_row, 1)),
            past=past,
            branches=branches,
            head=False,
            collect=0 if layer is None else count,
            rngs={} if key is None else {"dropout": key},
        )
        if layer is not None and output.layers is not None:
            hidden = output.layers[layer]
        else:
            hidden = output.hidden[:, -count:]
        return hidden.astype(jnp.float32).reshape(-1, *meta.shape)


def _with_meta(rows: Rows, per_row: int, layers: int) -> Branches | None:
    """Texts and positions of packed rows, with `layers` meta slots appended for every text."""
    if rows.text is None or rows.positions is None:
        return None
    number = jnp.arange(per_row)
    owned = rows.mask[:, None] & (rows.text[:, None] == number[:, None])  # [R, per_row, S]
    positions = jnp.sum(owned, axis=-1)[..., None] + jnp.arange(layers)
    count = rows.mask.shape[0]
    text = jnp.broadcast_to(jnp.repeat(number, layers), (count, per_row * layers))
    return Branches(
        None,
        jnp.concatenate([rows.positions, positions.reshape(count, -1)], axis=1),
        jnp.concatenate([rows.text, text], axis=1),
    )


def _split(whole: Branches | None, slots: int) -> tuple[Branches | None, Branches | None]:
    """The layouts of the first `slots` slots and of those after."""
    if whole is None or whole.text is None:
        return None, None
    return (
        Branches(None, whole.positions[:, :slots], whole.text[:, :slots]),
        Branches(None, whole.positions[:, slots:], whole.text[:, slots:]),
    )
