"""LoRA, DoRA and VeRA on any linear layers of the edge: trained parts, and what they do.

An *update* of one linear layer is `a` [L, *in, R] and `b` [L, R, *out], as `Decoder` takes it in
`adapters`; with a `magnitude` [L, *out] it is a DoRA. Heads are axes of their own, as in the leaf
of the weights.

- LoRA (arXiv 2106.09685): W + s A B, s = alpha / R.
- DoRA (arXiv 2402.09353): m (W + s A B) / |W + s A B|, where m [out] and the norms are those of
  each output's weights.
- VeRA (arXiv 2310.11454): W + A d B b with trained vectors d [R] and b [out]. A and B are random
  and frozen, one pair for all layers, cut to the inputs and outputs of each linear layer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.config import PROJECTIONS, ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.hf.peft_weights import Lora, Update
from lorage_jax.models.bits import restored
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import Leaf, initialise, layer_leaves

Form = Literal["lora", "dora", "vera"]
Linear = Literal["q", "k", "v", "o", "gate", "up", "down"]
Updates = dict[str, dict[str, Any]]  # by the name of a linear layer's leaf

LINEARS = ("q", "k", "v", "o", *PROJECTIONS)
VERA_D = 0.1  # first value of VeRA's d


def linears(edge: ModelConfig, targets: Sequence[str] | None) -> tuple[str, ...]:
    """The linear layers named by `targets`, in the order of LINEARS; by default, those of the FFN.

    Raises ConfigError for a layer that the edge does not have, or one named twice.
    """
    found = edge.projections if targets is None else targets
    there = [name for name in LINEARS if name in layer_leaves(edge)]
    if not found or len(set(found)) < len(found) or not set(found) <= set(there):
        raise ConfigError(
            f"targets are {', '.join(found) or 'none'}; expected any of {', '.join(there)}, each "
            "once."
        )
    return tuple(name for name in LINEARS if name in found)


def lora_leaves(edge: ModelConfig, targets: Sequence[str], rank: int) -> dict[str, dict[str, Leaf]]:
    """The factors of a LoRA: `a` is Kaiming-uniform, `b` zero, so that a fresh one changes nothing.

    Those of the FFN have an axis of one expert, [L, 1, I, R], as in a pool.
    """
    leaves = {}
    for name in targets:
        inputs, outputs, leaf = _sides(edge, name)
        a = Leaf((*inputs, rank), (*leaf.axes[: len(inputs)], "rank"), "kaiming")
        b = Leaf((rank, *outputs), ("rank", *leaf.axes[len(inputs) :]), "zeros")
        if name in PROJECTIONS:
            a = Leaf((1, *a.shape), ("experts", *a.axes), a.init)
            b = Leaf((1, *b.shape), ("experts", *b.axes), b.init)
        leaves[name] = {"a": a.stack(edge.layers), "b": b.stack(edge.layers)}
    return leaves


def dora_leaves(edge: ModelConfig, targets: Sequence[str], rank: int) -> dict[str, dict[str, Leaf]]:
    """The factors of `lora_leaves`, and `magnitude`, which `first_magnitudes` gives its value."""
    leaves = lora_leaves(edge, targets, rank)
    for name in targets:
        inputs, outputs, leaf = _sides(edge, name)
        magnitude = Leaf(outputs, leaf.axes[len(inputs) :], "ones")
        leaves[name]["magnitude"] = magnitude.stack(edge.layers)
    return leaves


def first_magnitudes(edge_layers: Mapping[str, Any], updates: Updates) -> Updates:
    """`updates` with the lengths of the weights as `magnitude`: a DoRA that changes nothing."""

    def length(name: str, like: jax.Array) -> jax.Array:
        w = restored(edge_layers[name]).astype(jnp.float32)
        inputs = tuple(range(1, w.ndim - like.ndim + 1))
        return jnp.sqrt(jnp.sum(w * w, axis=inputs))

    return {
        name: {**one, "magnitude": length(name, one["magnitude"])} for name, one in updates.items()
    }


def vera_leaves(edge: ModelConfig, targets: Sequence[str], rank: int) -> dict[str, dict[str, Leaf]]:
    """VeRA's trained vectors: `d` [L, R], to be multiplied by VERA_D, and `b` [L, *out], zero."""
    leaves = {}
    for name in targets:
        inputs, outputs, leaf = _sides(edge, name)
        d, b = Leaf((rank,), ("rank",), "ones"), Leaf(outputs, leaf.axes[len(inputs) :], "zeros")
        leaves[name] = {"d": d.stack(edge.layers), "b": b.stack(edge.layers)}
    return leaves


def vera_projections(edge: ModelConfig, targets: Sequence[str], rank: int) -> dict[str, Leaf]:
    """VeRA's frozen pair for all layers, `a` [most inputs, R] and `b` [R, most outputs]."""
    sides = [_sides(edge, name)[:2] for name in targets]
    inputs = max(math.prod(one) for one, _ in sides)
    outputs = max(math.prod(one) for _, one in sides)
    return {
        "a": Leaf((inputs, rank), ("hidden", "rank"), "kaiming"),
        "b": Leaf((rank, outputs), ("rank", "hidden"), "kaiming"),
    }


def new_vera(
    edge: ModelConfig, targets: Sequence[str], rank: int, key: jax.Array
) -> tuple[Updates, dict[str, jax.Array]]:
    """Fresh vectors, and the projections, uniform within sqrt(6 / fan-in) as in PEFT."""
    trained = initialise(vera_leaves(edge, targets, rank), key)
    trained = {name: {**one, "d": one["d"] * VERA_D} for name, one in trained.items()}
    drawn = initialise(vera_projections(edge, targets, rank), jax.random.fold_in(key, 1))
    return trained, {name: value * math.sqrt(6) for name, value in drawn.items()}


def vera_updates(edge: ModelConfig, trained: Updates, projections: Mapping[str, Any]) -> Updates:
    """The updates of a VeRA: a LoRA of factors A d and B b, scale 1."""
    found = {}
    for name, one in trained.items():
        inputs, outputs, _ = _sides(edge, name)
        rows, columns = math.prod(inputs), math.prod(outputs)
        a = projections["a"][:rows].reshape(1, *inputs, -1)
        b = projections["b"][:, :columns].reshape(1, -1, *outputs)
        d = one["d"].reshape(-1, *[1] * len(inputs), one["d"].shape[-1])
        found[name] = {"a": a * d, "b": b * one["b"][:, None]}
    return found


def without_expert_axis(trained: Updates) -> Updates:
    """The updates of trained factors, whose FFN has an axis of one expert."""
    return {
        name: {
            part: value[:, 0] if name in PROJECTIONS and part in ("a", "b") else value
            for part, value in one.items()
        }
        for name, one in trained.items()
    }


def layer_updates(edge: ModelConfig, updates: Updates, scale: float) -> list[Update]:
    """The same updates layer by layer, in the layout of files, `scale` in `b`."""
    found = []
    for name, one in updates.items():
        inputs, _, _ = _sides(edge, name)
        a, b = np.asarray(one["a"], np.float32), np.asarray(one["b"], np.float32)
        rank = b.shape[1]
        for layer in range(edge.layers):
            magnitude = None
            if "magnitude" in one:
                magnitude = np.asarray(one["magnitude"][layer], np.float32).reshape(-1)
            down = a[layer].reshape(math.prod(inputs), rank).T
            up = b[layer].reshape(rank, -1).T * np.float32(scale)
            found.append(Update(("layers", name), layer, down, up, magnitude))
    return found


def stacked(edge: ModelConfig, found: Sequence[Lora]) -> Pool:
    """A pool whose expert e is the e-th LoRA, scale 1; smaller ranks are filled with zeros.

    With gates w the pool gives (sum_e w_e A_e)(sum_e w_e B_e), the sum of LoraHub.

    Raises ConfigError for an adapter that is more than a LoRA on the FFN.
    """
    rank = max(update.a.shape[0] for lora in found for update in lora.updates)
    experts: dict[str, dict[str, np.ndarray]] = {}
    for name in edge.projections:
        (inputs,), (outputs,), _ = _sides(edge, name)
        a = np.zeros((edge.layers, len(found), inputs, rank), np.float32)
        b = np.zeros((edge.layers, len(found), rank, outputs), np.float32)
        experts[name] = {"a": a, "b": b}
    for number, lora in enumerate(found):
        for update in lora.updates:
            name = update.leaf[-1]
            if name not in experts or update.magnitude is not None or lora.biases:
                raise ConfigError(
                    f"adapter {number} changes {name}: a pool holds plain LoRA on the FFN "
                    f"({', '.join(edge.projections)}) only."
                )
            place, own = (update.layer, number), update.a.shape[0]
            experts[name]["a"][place][:, :own] = update.a.T
            experts[name]["b"][place][:own] = update.b.T
    digest = hashlib.sha256("\n".join(lora.digest for lora in found).encode()).hexdigest()
    arrays = jax.tree.map(jnp.asarray, experts)
    return Pool(arrays, "factors", 1.0, "per_layer", f"sha256:{digest}")


def _sides(edge: ModelConfig, name: str) -> tuple[tuple[int, ...], tuple[int, ...], Leaf]:
    """The input and output shape of a linear layer, and its leaf."""
    leaf = layer_leaves(edge)[name]
    assert leaf.matrix is not None
    count = len(leaf.matrix[0])
    return leaf.shape[:count], leaf.shape[count:], leaf
