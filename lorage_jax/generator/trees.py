"""Trees of trained parts: nested dicts of arrays, as flat names and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lorage_jax.files.safetensors import read_tensors
from lorage_jax.models.leaves import Leaf


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"pool.gate.a": array}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    out: dict[str, Any] = {}
    for name in sorted(tree):
        out |= flatten(tree[name], f"{prefix}.{name}" if prefix else name)
    return out


def read_tree(file: Path, leaves: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a file of flat names, float32, as the tree of `leaves`.

    Raises WeightsError that lists every array that does not fit.
    """
    shapes = {name: leaf.shape for name, leaf in flatten(leaves).items()}
    found = read_tensors(file, shapes)

    def build(tree: Any, prefix: str) -> Any:
        if isinstance(tree, Leaf):
            return jnp.asarray(found[prefix], jnp.float32)
        return {k: build(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items()}

    return build(leaves, "")
