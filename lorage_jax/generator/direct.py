"""Heads that turn a hidden state into the numbers of a LoRA, without a pool (paper, Section 3.2).

Both begin with an embedding u = SiLU(W1 norm(T_i) + b1) of the hidden state T_i of layer i, and end
with weights of zero and a bias per layer that is a fresh LoRA: every prompt begins at no update.

- `layers`: the factors of layer i are W2 u + bias_i.
- `ranks`: the r-th column of A and the r-th row of B of module m are heads of their own latent,
  z + SiLU(W z + b) with z = u + module_m + rank_r; a head serves all layers and ranks of a module.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lorage_jax import ops
from lorage_jax.config import ModelConfig
from lorage_jax.models.leaves import Leaf

Head = Literal["layers", "ranks"]
EPS = 1e-5  # of the norm, which has no parameters


def head_leaves(
    head: Head, hidden: int, rank: int, cloud_width: int, edge: ModelConfig
) -> dict[str, Any]:
    """The parameters of a head with `hidden` channels, for LoRAs of this rank on the edge's FFN."""
    h = hidden
    leaves: dict[str, Any] = {"f1": _linear(cloud_width, hidden, "cloud")}
    bias, out = {}, {}
    for name in edge.projections:
        inside, outside = ("embed", "ffn") if name != "down" else ("ffn", "embed")
        size = {"embed": edge.width, "ffn": edge.ffn_width}
        a = Leaf((size[inside], rank), (inside, "rank"), "kaiming")
        b = Leaf((rank, size[outside]), ("rank", outside), "zeros")
        bias[name] = {"a": a.stack(edge.layers), "b": b.stack(edge.layers)}
        if head == "layers":
            out[name] = {
                part: Leaf((h, *leaf.shape), ("hidden", *leaf.axes), "zeros")
                for part, leaf in (("a", a), ("b", b))
            }
        else:
            out[name] = {
                "a": Leaf((h, size[inside]), ("hidden", inside), "zeros"),
                "b": Leaf((h, size[outside]), ("hidden", outside), "zeros"),
            }
    if head == "ranks":
        leaves["module"] = {name: Leaf((h,), ("hidden",), "kaiming") for name in edge.projections}
        leaves["rank"] = Leaf((rank, h), ("rank", "hidden"), "kaiming")
        leaves["f2"] = _linear(h, h, "hidden")
    return leaves | {"out": out, "bias": bias}


def _linear(inside: int, outside: int, axis: str) -> dict[str, Leaf]:
    last = "rank" if axis == "hidden" else "hidden"  # a mesh axis is used once
    return {
        "kernel": Leaf((inside, outside), (axis, last), "kaiming"),
        "bias": Leaf((outside,), ("hidden",), "zeros"),
    }


def factors(
    params: dict[str, Any], states: Float[Array, "P L C"]
) -> dict[str, dict[str, Float[Array, "P L *factor"]]]:
    """The factors `a` [P, L, in, R] and `b` [P, L, R, out] of each projection, float32.

    `params` are those of either head; `states` are the hidden states of P prompts.
    """
    x = states.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS)
    u = jax.nn.silu(_apply(params["f1"], x))
    made = {}
    for name, heads in params["out"].items():
        bias = params["bias"][name]
        if "rank" not in params:
            found = {part: ops.einsum("plh,hxy->plxy", u, heads[part]) for part in ("a", "b")}
        else:
            z = u[:, :, None] + params["module"][name] + params["rank"]
            z = z + jax.nn.silu(_apply(params["f2"], z))
            found = {
                "a": ops.einsum("plrh,hi->plir", z, heads["a"]),
                "b": ops.einsum("plrh,ho->plro", z, heads["b"]),
            }
        made[name] = {part: value + bias[part] for part, value in found.items()}
    return made


def _apply(linear: dict[str, Array], x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
    return ops.einsum("...i,io->...o", x, linear["kernel"]) + linear["bias"]


def as_experts(made: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """The LoRAs of P prompts as the experts of a pool, `a` [L, P, in, R] and `b` [L, P, R, out]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)
