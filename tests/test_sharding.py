"""Chosen meshes, and slices along `data`."""

import jax
import pytest

from lorage_jax.config import MeshConfig
from lorage_jax.errors import ConfigError
from lorage_jax.sharding import _mesh_sizes, make_mesh

AUTO = MeshConfig(-1, -1, -1)


@pytest.mark.parametrize(
    ("devices", "slices", "rows", "sizes"),
    [
        (8, 1, 64, (1, 8, 1)),
        (256, 1, 64, (1, 64, 4)),  # more devices than rows: the rest splits the matrices
        (16, 2, 64, (2, 8, 1)),  # weights are gathered within a slice
        (512, 2, 64, (2, 32, 8)),
        (8, 1, 4, (1, 4, 2)),
        (12, 1, 64, (1, 4, 3)),
        (8, 1, None, (1, 8, 1)),
    ],
)
def test_a_mesh_that_is_chosen(devices, slices, rows, sizes):
    assert _mesh_sizes(AUTO, devices, slices, rows) == sizes


def test_on_these_devices():
    assert dict(make_mesh(AUTO, rows=4).shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert make_mesh(MeshConfig(), jax.devices()[:2]).shape["data"] == 2


@pytest.mark.parametrize(
    ("mesh", "slices", "says"),
    [
        (MeshConfig(-1, -1, 1), 1, "One axis may be -1"),
        (MeshConfig(0, 1, 1), 1, "expected 1 or more on every axis"),
        (MeshConfig(3, 1, 1), 1, "3 x 1 x 1 does not fit 8 devices"),
        (MeshConfig(2, 2, 1), 1, "must be the number of devices"),
        (MeshConfig(1, -1, 1), 2, "1 x 8 x 1 does not fit 2 slices"),
    ],
)
def test_a_mesh_that_does_not_fit(mesh, slices, says):
    with pytest.raises(ConfigError, match=says):
        _mesh_sizes(mesh, 8, slices, None)
