"""Names of slices, and the errors for those that do not exist."""

import importlib.util

import pytest

from lorage_jax.aot.topology import parse_topology, tpu_devices
from lorage_jax.chips import CHIPS
from lorage_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "shape", "slices", "chips"),
    [
        ("v5e:2x4", (2, 4), 1, 8),
        ("v5e:16x16", (16, 16), 1, 256),
        ("v5p:2x2x1", (2, 2, 1), 1, 4),
        ("v5e:2x4*2", (2, 4), 2, 16),
    ],
)
def test_names(name, shape, slices, chips):
    topology = parse_topology(name)
    assert (topology.shape, topology.slices, topology.chips) == (shape, slices, chips)
    assert topology.name == name and topology.chip is CHIPS[name[:3]]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v9:2x2", "expected GENERATION:SHAPE, with v4, v5e, v5p, v6e"),
        ("v5e-8", "expected GENERATION:SHAPE"),
        ("v5e:2x4*", "expected GENERATION:SHAPE"),
        ("v5e:2x2x2", "a v5e slice has 2 axes and 1 to 256 chips"),
        ("v4:2x2", "a v4 slice has 3 axes"),
        ("v6e:32x32", "1 to 256 chips"),
        ("v5e:0x4", "1 to 256 chips"),
        ("v5e:2x4*0", "no topology 'v5e:2x4.0'"),
    ],
)
def test_no_such_topology(name, says):
    with pytest.raises(ConfigError, match=says):
        parse_topology(name)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; run .pip install libtpu"):
        tpu_devices(parse_topology("v5e:2x4"))


def test_a_chip_leaves_most_of_its_memory_to_programs():
    for chip in CHIPS.values():
        assert 0.9 * chip.hbm_gib < chip.usable_gib <= chip.hbm_gib
