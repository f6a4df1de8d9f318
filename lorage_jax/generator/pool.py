"""The pool of LoRA experts, and the single LoRA that gates assemble from it (Eq. 8).

For each projection of the edge's FFN: `a` [L, E, in, R], `b` [L, E, R, out]; with scope `shared`
the layer axis is absent. The decoder applies a pool unmerged (`ops.gated_low_rank`); `assemble`
gives the factors that `merge.py` adds to the weights and `adapter.py` exports.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax import ops
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import Leaf


def make_pool(experts: dict[str, Any], config: GeneratorConfig, generator: str = "") -> Pool:
    """A `Pool` of these arrays under the switches of `config`."""
    return Pool(experts, config.combine, config.scale, config.pool_scope, generator)


def pool_leaves(config: GeneratorConfig, edge: ModelConfig) -> dict[str, dict[str, Leaf]]:
    """Shapes and axes of the experts of `config`."""
    return expert_leaves(edge, config.experts, config.rank, config.pool_scope)


def expert_leaves(edge: ModelConfig, e: int, r: int, scope: str) -> dict[str, dict[str, Leaf]]:
    """E experts of rank R. `a` is Kaiming-uniform, `b` zero: a fresh pool changes nothing."""
    leaves = {}
    for name in edge.projections:
        inside, outside = ("embed", "ffn") if name != "down" else ("ffn", "embed")
        size = {"embed": edge.width, "ffn": edge.ffn_width}
        a = Leaf((e, size[inside], r), ("experts", inside, "rank"), "kaiming")
        b = Leaf((e, r, size[outside]), ("experts", "rank", outside), "zeros")
        if scope == "per_layer":
            a, b = a.stack(edge.layers), b.stack(edge.layers)
        leaves[name] = {"a": a, "b": b}
    return leaves


def assemble(
    pool: Pool, gates: Float[Array, "L E"], rank: int
) -> dict[str, tuple[Float[Array, "L I P"], Float[Array, "L P O"]]]:
    """The factors A, B of the update A @ B for every layer, alpha / R already in B; float32.

    `factors`: A = sum_e g_e a_e, B = sum_e g_e b_e, rank R. `products`: the experts with the
    `rank` / R largest gates side by side, gates in B; `rank` comes from `assembled_rank`.
    """
    gates = gates.astype(jnp.float32)
    out = {}
    for name in pool.projections:
        a = pool.experts[name]["a"].astype(jnp.float32)
        b = pool.experts[name]["b"].astype(jnp.float32)
        layer = "l" if pool.scope == "per_layer" else ""
        if pool.combine == "factors":
            a = ops.einsum(f"le,{layer}eir->lir", gates, a)
            b = ops.einsum(f"le,{layer}ero->lro", gates, b)
        else:
            top, chosen = jax.lax.top_k(gates, rank // pool.rank)  # [L, K]
            pick = jax.vmap(lambda x, i: x[i], in_axes=(0 if layer else None, 0))
            a, b = pick(a, chosen), pick(b, chosen) * top[:, :, None, None]
            layers, k, inside, r = a.shape
            a = a.transpose(0, 2, 1, 3).reshape(layers, inside, k * r)
            b = b.reshape(layers, k * r, b.shape[-1])
        out[name] = (a, b * pool.scale)
    return out


def assembled_rank(pool: Pool, gates: Any) -> int:
    """Rank of the assembled LoRA: R, or R times the largest number of open gates in any layer."""
    if pool.combine == "factors":
        return pool.rank
    return pool.rank * max(1, int(np.count_nonzero(np.asarray(gates), axis=-1).max()))
