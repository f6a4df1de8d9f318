"""Small readers of system prompts instead of the cloud: no language model at all.

They give one vector per prompt. Two work on the token embeddings of the edge, float32 and divided
by the table's root mean square:

- `bag`: the mean over the prompt's tokens, blind to their order; nothing is trained.
- `encoder`: a trained encoder of some layers with attention in both directions, then the mean and a
  norm.
- `sentence`: a frozen sentence encoder (`sentences.py`); a trained linear layer and norm follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax import ops, rotary
from lorage_jax.config import ModelConfig
from lorage_jax.models.leaves import Leaf

Reader = Literal["bag", "encoder", "sentence"]
ENCODER_LAYERS = 2
EPS, THETA = 1e-5, 10_000.0


@dataclass(frozen=True)
class Encoder:
    """Sizes of the trained encoder: the edge's width, its heads, and an FFN of twice the width."""

    width: int
    heads: int
    layers: int = ENCODER_LAYERS

    @classmethod
    def beside(cls, edge: ModelConfig) -> Encoder:
        """The encoder for an edge: heads of 32 channels, or as near as its width divides."""
        heads = next(n for n in range(max(1, edge.width // 32), 0, -1) if edge.width % (2 * n) == 0)
        return cls(edge.width, heads)


def encoder_leaves(encoder: Encoder) -> dict[str, Any]:
    """The parameters of the encoder, all layers stacked."""
    d, f = encoder.width, 2 * encoder.width
    one = {
        **{name: Leaf((d, d), ("embed", "hidden")) for name in ("q", "k", "v", "o")},
        **{name: Leaf((d, f), ("embed", "ffn")) for name in ("gate", "up")},
        "down": Leaf((f, d), ("ffn", "embed")),
        "attn_norm": Leaf((d,), ("embed",), "ones"),
        "ffn_norm": Leaf((d,), ("embed",), "ones"),
    }
    layers = {name: leaf.stack(encoder.layers) for name, leaf in one.items()}
    return {"layers": layers, "final_norm": Leaf((d,), ("embed",), "ones")}


def projection_leaves(vector: int, width: int) -> dict[str, Leaf]:
    """The parameters behind a sentence encoder with vectors of `vector` numbers."""
    return {
        "weight": Leaf((vector, width), ("hidden", "embed")),
        "bias": Leaf((width,), ("embed",), "zeros"),
        "norm": Leaf((width,), ("embed",), "ones"),
        "norm_bias": Leaf((width,), ("embed",), "zeros"),
    }


def projected(params: dict[str, Array], vectors: Float[Array, "P w"]) -> Float[Array, "P D"]:
    """The vectors of a sentence encoder in the edge's width, normalised."""
    x = ops.project(vectors[:, None], params["weight"])[:, 0] + params["bias"]
    return ops.layer_norm(x, params["norm"], params["norm_bias"], EPS)


def bag(
    table: Float[Array, "V D"], tokens: Int[Array, "P S"], mask: Bool[Array, "P S"]
) -> Float[Array, "P D"]:
    """The mean embedding of each prompt's tokens."""
    return _mean(_embedded(table, tokens), mask)


def encoded(
    encoder: Encoder,
    params: dict[str, Any],
    table: Float[Array, "V D"],
    tokens: Int[Array, "P S"],
    mask: Bool[Array, "P S"],
) -> Float[Array, "P D"]:
    """The encoder's vector of each prompt: the mean of its last states, normalised."""
    head = encoder.width // encoder.heads
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    cos, sin = rotary.table(positions, rotary.frequencies(head, THETA, None))
    seen = jnp.broadcast_to(mask[:, None, :], (*mask.shape, mask.shape[1]))

    def layer(x: Array, w: dict[str, Array]) -> tuple[Array, None]:
        y = ops.rms_norm(x, w["attn_norm"], EPS, 0.0)
        q, k, v = (
            ops.project(y, w[name]).reshape(*y.shape[:2], encoder.heads, head) for name in "qkv"
        )
        q, k = rotary.rotate(q, cos, sin), rotary.rotate(k, cos, sin)
        y = ops.attention(q, k, v, seen, head**-0.5, None)
        x = x + ops.project(y.reshape(x.shape), w["o"])
        y = ops.rms_norm(x, w["ffn_norm"], EPS, 0.0)
        inner = ops.activation(ops.project(y, w["gate"]), "silu") * ops.project(y, w["up"])
        return x + ops.project(inner, w["down"]), None

    x, _ = jax.lax.scan(layer, _embedded(table, tokens), params["layers"])
    return ops.rms_norm(_mean(x, mask), params["final_norm"], EPS, 0.0)


def _embedded(table: Float[Array, "V D"], tokens: Int[Array, "P S"]) -> Float[Array, "P S D"]:
    wide = table.astype(jnp.float32)
    return table[tokens].astype(jnp.float32) / jnp.sqrt(jnp.mean(wide * wide))


def _mean(x: Float[Array, "P S D"], mask: Bool[Array, "P S"]) -> Float[Array, "P D"]:
    total = jnp.sum(jnp.where(mask[..., None], x, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
