"""Large replicated arrays are named; the step keeps everything sharded."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lorage_jax.config import GeneratorConfig, MeshConfig, OptimizerConfig
from lorage_jax.errors import ConfigError
from lorage_jax.hf.family import family_decoder
from lorage_jax.sharding import make_mesh
from lorage_jax.train import placement
from lorage_jax.train.placement import check_spread
from tests.programs import step_program


def arrays(mesh):
    def put(shape, *spec):
        return jax.device_put(jnp.zeros(shape), NamedSharding(mesh, PartitionSpec(*spec)))

    return {
        "edge": {"up": put((6, 100), None, None), "down": put((8, 100), "fsdp")},
        "state": {"mu": [put((4, 100))], "small": put((3,))},
    }


def test_big_whole_arrays_are_named(monkeypatch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    assert check_spread(arrays(mesh), mesh) is None  # none is above TOLERANCE
    monkeypatch.setattr(placement, "TOLERANCE", 1000)
    with pytest.raises(ConfigError) as caught:
        check_spread(arrays(mesh), mesh)
    message = str(caught.value)
    assert "edge.up [6, 100]" in message and "state.mu.0 [4, 100]" in message
    assert "down" not in message and "small" not in message
    assert "data 2 x fsdp 4 x tensor 1" in message


def test_data_parallelism_is_only_told(monkeypatch):
    monkeypatch.setattr(placement, "TOLERANCE", 1000)
    mesh = make_mesh(MeshConfig())
    note = check_spread(arrays(mesh), mesh)
    assert "8 devices holds" in note and "edge.down" in note and "fsdp=" in note
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert check_spread(arrays(one), one) is None


def test_gradients_and_moments_are_spread_as_their_parameters():
    """In the compiled step's outputs, and in the carry of the loop over micro-batches."""
    sizes = {"vocab_size": 64, "heads": 2, "kv_heads": 2}
    cloud = family_decoder("llama", width=32, layers=1, ffn_width=48, **sizes)
    edge = family_decoder("llama", width=64, layers=3, ffn_width=96, **sizes)
    step, arguments, shardings = step_program(
        cloud,
        edge,
        make_mesh(MeshConfig(data=1, fsdp=8)),
        prompts=(8, 8),
        queries=(8, 9),
        generator=GeneratorConfig(experts=5, rank=7, dropout=0.0),
        optimizer=OptimizerConfig(accumulate=2),
        dtype="float32",
    )
    compiled = step.lower(*arguments).compile()
    out = compiled.output_shardings[0]
    for wanted, found, array in zip(
        *map(jax.tree.leaves, (shardings, out, arguments[0])), strict=True
    ):
        assert found.is_equivalent_to(wanted, array.ndim)
    moments = out.optimizer[1][0]
    assert moments.mu["pool"]["up"]["a"].spec == out.trained["pool"]["up"]["a"].spec
    assert not moments.nu["pool"]["up"]["a"].is_fully_replicated
    loops = [line for line in compiled.as_text().splitlines() if re.search(r"\) while\(", line)]
    carried = [line for line in loops if "f32[3,5,8,7]" in line]  # a of gate and up: 64 / 8
    assert carried, "the loop over micro-batches was not found"
    assert not any("f32[3,5,64,7]" in line.split(") while(")[0] for line in carried)
