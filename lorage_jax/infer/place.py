"""Weights on the devices of an evaluation: a model that is on no mesh goes to all of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lorage_jax.config import MeshConfig
from lorage_jax.models.model import Model
from lorage_jax.sharding import MESH_AXES, layout_of, make_mesh


def place(model: Model) -> Model:
    """Replicates the model on all devices, unless it is on a mesh already."""
    return model.replace(params=placed(model.params, mesh_of(model.params)))


def place_beside(tree: Any, model: Model) -> Any:
    """Replicates arrays (such as a pool) on the devices of a model that `place` returned."""
    return placed(tree, mesh_of(model.params))


def spread_rows(params: Any, *arrays: Any) -> tuple[Any, ...]:
    """Arrays of rows [B, ...] as weights on several devices need them; None stays None.

    They are split over the batch devices, and the last row is repeated to fill these up. For
    weights on one device, they stay as they are.
    """
    layout = layout_of(params)
    if layout is None:
        return arrays
    return tuple(None if one is None else layout.spread(np.asarray(one)) for one in arrays)


def mesh_of(params: Any) -> Mesh:
    """The mesh that the weights are on, or a data-parallel mesh of this process's devices."""
    sharding = jax.tree.leaves(params)[0].sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if isinstance(mesh, Mesh) and mesh.axis_names == MESH_AXES:
        return mesh
    return make_mesh(MeshConfig(data=-1), jax.local_devices())


def placed(tree: Any, mesh: Mesh) -> Any:
    """Replicates arrays that are not on `mesh` to each of its devices."""
    whole = NamedSharding(mesh, PartitionSpec())

    def put(x):
        return x if getattr(x.sharding, "mesh", None) == mesh else jax.device_put(x, whole)

    return jax.tree.map(put, tree)
