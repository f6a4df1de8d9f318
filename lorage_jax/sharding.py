"""The placement of arrays: a mesh of three axes, and rules that map logical axes to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lorage_jax.config import MeshConfig
from lorage_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(
    config: MeshConfig,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    rows: int | None = None,
) -> Mesh:
    """Makes the mesh over all devices (or `devices`), for batches of `rows` rows.

    TPU slices lie along `data`. Raises ConfigError if the product of the axes does not fit the
    number of devices or slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = _slices(devices)
    sizes = _mesh_sizes(config, len(devices), slices, rows)
    types = (AxisType.Auto,) * len(MESH_AXES)
    if slices == 1:
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)
    within = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
    return Mesh(grid, MESH_AXES, axis_types=types)


def inference_mesh(
    weight_bytes: int,
    device_bytes: float,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Makes the mesh on which a model reads prompts or decodes: its weights never move.

    They are split over as few devices as hold them in half of their memory (`tensor`), and rows
    over the groups of such devices (`data`).

    Args:
        weight_bytes: size of the model.
        device_bytes: memory of a device.
        devices: default: all.
    """
    devices = list(jax.devices() if devices is None else devices)
    each = len(devices) // _slices(devices)
    sizes = [size for size in range(1, each + 1) if each % size == 0]
    enough = [size for size in sizes if weight_bytes <= size * device_bytes / 2]
    return make_mesh(MeshConfig(data=-1, tensor=enough[0] if enough else each), devices)


def local_memory(devices: Iterable[Any]) -> int | None:
    """Bytes of the smallest of this process's `devices`; None if one does not report it."""
    local = jax.local_devices()
    found = [(one.memory_stats() or {}).get("bytes_limit") for one in devices if one in local]
    known = [limit for limit in found if limit is not None]
    return min(known) if known and len(known) == len(found) else None


def _slices(devices: Sequence[Any]) -> int:
    """Number of TPU slices; 1 for other devices."""
    tpus = [device for device in devices if device.platform == "tpu"]
    return max(len({getattr(device, "slice_index", None) for device in tpus}), 1)


def _mesh_sizes(
    config: MeshConfig, devices: int, slices: int, rows: int | None
) -> tuple[int, int, int]:
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes == [-1, -1, -1]:
        # Weights are gathered within a slice only, and every batch device gets a row.
        each = devices // slices
        fsdp = each if rows is None else math.gcd(each, max(rows // slices, 1))
        return slices, fsdp, each // fsdp
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ConfigError(
            f"mesh {sizes}: expected 1 or more on every axis. One axis may be -1, for all "
            "remaining devices, or all three, to have them chosen."
        )
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if devices % known or (-1 not in sizes and known != devices):
        raise ConfigError(
            f"a mesh of data x fsdp x tensor = {' x '.join(map(str, sizes))} does not fit "
            f"{devices} devices; their product must be the number of devices."
        )
    data, fsdp, tensor = (devices // known if s == -1 else s for s in sizes)
    if data % slices:
        raise ConfigError(
            f"a mesh of data x fsdp x tensor = {data} x {fsdp} x {tensor} does not fit {slices} "
            f"slices; data spans the slices, so it must be a multiple of {slices}."
        )
    return data, fsdp, tensor


Axis = str | tuple[str, ...] | None  # one mesh axis, several, or None: replicated


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class ShardingRules:
    """The mesh axis (or axes, or None) of each logical axis. The default is FSDP plus tensor."""

    batch: Axis = ("data", "fsdp")
    layers: Axis = None
    vocab: Axis = "tensor"
    positions: Axis = None
    embed: Axis = "fsdp"
    heads: Axis = "tensor"
    kv_heads: Axis = "tensor"
    head_dim: Axis = None
    ffn: Axis = "tensor"
    cloud: Axis = "fsdp"  # cloud width, in the router and the meta tokens
    hidden: Axis = None  # hidden width of the router
    experts: Axis = None  # replicated, so that the merge needs no collectives
    rank: Axis = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            for axis in _as_tuple(getattr(self, field.name)):
                if axis not in MESH_AXES:
                    raise ConfigError(
                        f"sharding rule {field.name} -> {axis!r}: mesh axes are {MESH_AXES}."
                    )

    def spec(self, axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes.

        An axis that the mesh cannot divide evenly (4 kv heads on 8 devices) stays whole.

        Raises ConfigError for an unknown axis, a wrong rank, or a mesh axis that is used twice.
        """
        if len(axes) != len(shape):
            raise ConfigError(f"{len(axes)} axis names {axes} for an array of shape {shape}.")
        parts: list[Any] = []
        used: set[str] = set()
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
            parts.append(wanted[0] if len(wanted) == 1 else wanted)
        return PartitionSpec(*parts)


@dataclass(frozen=True)
class Layout:
    """A mesh with its sharding rules, and the constraints that place arrays inside a program.

    Without these constraints, XLA leaves the weights in place, splits activations by width instead
    of by rows, and sends all of them through the mesh at every matrix product.
    """

    mesh: Mesh
    rules: ShardingRules = ShardingRules()

    @property
    def platform(self) -> str:
        """`tpu`, `gpu` or `cpu`: the mesh's platform, which may differ from the compiler's host."""
        return self.mesh.devices.flat[0].platform

    @property
    def flash(self) -> bool:
        """True if the devices can run the kernels of `flash.py`."""
        return self.platform == "tpu"

    def sharding(self, leaf: Any) -> NamedSharding:
        """The sharding of a `Leaf`."""
        return NamedSharding(self.mesh, self.rules.spec(leaf.axes, leaf.shape, self.mesh))

    def rows(self, x: Any) -> Any:
        """Constrains `x`: its first axis is split over the batch axes, the others are whole."""
        spec = PartitionSpec(self.rules.batch)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    @property
    def batch_devices(self) -> int:
        """The number of parts that the rows of a batch are split into."""
        return math.prod(self.mesh.shape[axis] for axis in _as_tuple(self.rules.batch))

    def spread(self, rows: np.ndarray) -> np.ndarray | jax.Array:
        """Host rows [B, ...], split over the batch devices; the last one is repeated to fill up.

        With several processes, each has all rows.
        """
        missing = -len(rows) % self.batch_devices
        filled = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        place = NamedSharding(self.mesh, PartitionSpec(self.rules.batch))
        return jax.make_array_from_callback(filled.shape, place, lambda index: filled[index])

    def gathered(self, leaf: Any, x: Any) -> Any:
        """Constrains the array `x` of a `Leaf` as products need it: split along `tensor` only."""
        rows = _as_tuple(self.rules.batch)
        spec = [
            tuple(axis for axis in _as_tuple(part) if axis not in rows)
            for part in self.rules.spec(leaf.axes, leaf.shape, self.mesh)
        ]
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def head_axis(self, heads: int, kv_heads: int) -> str | None:
        """The mesh axis that splits heads and kv heads alike, keeping queries with their keys.

        None if there is no such axis.
        """
        spec = self.rules.spec(("heads",), (heads,), self.mesh)
        return spec[0] if spec == self.rules.spec(("kv_heads",), (kv_heads,), self.mesh) else None


def layout_of(params: Any) -> Layout | None:
    """The layout of weights that lie on a mesh of several devices, by the default rules.

    None for weights on one device, or on a mesh with other axes.
    """
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.axis_names != MESH_AXES or mesh.size == 1:
        return None
    return Layout(mesh)


def tree_shardings(leaves: Any, layout: Layout) -> Any:
    """The shardings of a tree of `Leaf`."""
    return jax.tree.map(layout.sharding, leaves)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole: scalars, keys and the like."""
    return NamedSharding(mesh, PartitionSpec())
