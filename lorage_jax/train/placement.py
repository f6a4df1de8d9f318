"""A check before the first step: no big array may lie whole on every device of a mesh."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from lorage_jax.chips import MIB
from lorage_jax.errors import ConfigError, listed

# Bytes of one array that every device may hold whole. Without a `tensor` axis the pool's factors on
# the FFN side are whole, so that merging needs no collective: 123 MiB each in the paper's recipes.
TOLERANCE = 256 * MIB


def check_spread(arrays: dict[str, Any], mesh: Mesh) -> str | None:
    """Looks for arrays above TOLERANCE that every device of a mesh holds whole.

    Raises ConfigError naming them if the mesh has an axis that could spread them; returns a note
    for the user if it has none, and None if there are no such arrays.
    """
    pairs = jax.tree_util.tree_leaves_with_path(arrays)
    found = [
        f"{jax.tree_util.keystr(path, simple=True, separator='.')} {list(x.shape)} "
        f"({x.nbytes / MIB:,.0f} MiB)"
        for path, x in pairs
        if x.nbytes > TOLERANCE and x.sharding.is_fully_replicated
    ]
    if not found or mesh.size == 1:
        return None
    shown = listed(found, 8)
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return (
            f"every one of the {mesh.size} devices holds {shown} whole: the mesh is {axes}. "
            "MeshConfig(fsdp=...) would spread them."
        )
    raise ConfigError(
        f"on a mesh of {axes}, every device holds {shown} whole, since no axis divides them. "
        "Choose fsdp and tensor that divide the models' widths and heads, such as powers of two."
    )
