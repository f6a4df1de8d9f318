"""Big arrays that no device shares are named; the step keeps everything spread."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lorage_jax.config import MeshConfig
from lorage_jax.errors import ConfigError
from lorage_jax.sharding import make_mesh
from lorage_jax.train.placement import check_spread


def arrays(mesh):
    def put(shape, *spec):
        return jax.device_put(jnp.zeros(shape), NamedSharding(mesh, PartitionSpec(*spec)))

    return {
        "edge": {"up": put((6, 100), None, None), "down": put((8, 100), "fsdp")},
        "state": {"mu": [put((4, 100))], "small": put((3,))},
    }


def test_big_whole_arrays_are_named():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    assert check_spread(arrays(mesh), mesh) is None  # none is above 64 MiB
    with pytest.raises(ConfigError) as caught:
        check_spread(arrays(mesh), mesh, tolerance=1000)
    message = str(caught.value)
    assert "edge.up [6, 100]" in message and "state.mu.0 [4, 100]" in message
    assert "down" not in message and "small" not in message
    assert "data 2 x fsdp 4 x tensor 1" in message


def test_data_parallelism_is_only_told():
    mesh = make_mesh(MeshConfig())
    note = check_spread(arrays(mesh), mesh, tolerance=1000)
    assert "8 devices holds" in note and "edge.down" in note and "fsdp=" in note
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert check_spread(arrays(one), one, tolerance=1000) is None
