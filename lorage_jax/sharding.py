"""Where arrays live: a mesh of three axes and one table from logical axes to mesh axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lorage_jax.config import MeshConfig
from lorage_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or `devices`). ConfigError when the axes do not multiply up."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ConfigError(
            f"mesh {sizes}: every axis is 1 or more, and at most one is -1 (all that are left)."
        )
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ConfigError(
            f"a mesh of data x fsdp x tensor = {' x '.join(map(str, sizes))} does not fit "
            f"{len(devices)} devices; their product must be the number of devices."
        )
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
    return jax.make_mesh(
        tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


@dataclass(frozen=True)
class ShardingRules:
    """Logical axis to mesh axis (or axes, or None for whole). The defaults are FSDP + tensor."""

    batch: str | tuple[str, ...] | None = ("data", "fsdp")
    layers: str | None = None
    vocab: str | None = "tensor"
    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    head_dim: str | None = None
    ffn: str | None = "tensor"
    cloud: str | None = "fsdp"  # cloud width, in the router and the meta tokens
    hidden: str | None = None  # router's inner width
    experts: str | None = None  # whole on every device: the merge then needs no collective
    rank: str | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            for axis in _as_tuple(getattr(self, field.name)):
                if axis not in MESH_AXES:
                    raise ConfigError(
                        f"sharding rule {field.name} -> {axis!r}: mesh axes are {MESH_AXES}."
                    )

    def spec(self, axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        """The partition of an array with these logical axes.

        An axis whose length the mesh does not divide stays whole (4 kv heads on 8 devices).
        Raises ConfigError for an unknown name, a wrong rank, or a mesh axis used twice.
        """
        if len(axes) != len(shape):
            raise ConfigError(f"{len(axes)} axis names {axes} for an array of shape {shape}.")
        parts, used = [], set()
        for name, size in zip(axes, shape, strict=True):
            if not hasattr(self, name):
                raise ConfigError(f"unknown logical axis {name!r} in {axes}.")
            wanted = _as_tuple(getattr(self, name))
            count = 1
            for axis in wanted:
                count *= mesh.shape[axis]
            if not wanted or size % count:
                parts.append(None)
                continue
            if used & set(wanted):
                raise ConfigError(
                    f"axes {axes}: mesh axis {sorted(used & set(wanted))} used twice."
                )
            used |= set(wanted)
            parts.append(wanted if len(wanted) > 1 else wanted[0])
        return PartitionSpec(*parts)

    def sharding(self, leaf: Any, mesh: Mesh) -> NamedSharding:
        """The sharding of a `Leaf`."""
        return NamedSharding(mesh, self.spec(leaf.axes, leaf.shape, mesh))


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def tree_shardings(leaves: Any, rules: ShardingRules, mesh: Mesh) -> Any:
    """Shardings for a tree of `Leaf`."""
    return jax.tree.map(lambda leaf: rules.sharding(leaf, mesh), leaves)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: for scalars, keys and other small things."""
    return NamedSharding(mesh, PartitionSpec())
