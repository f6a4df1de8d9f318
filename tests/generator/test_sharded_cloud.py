"""Prompts that a sharded cloud reads: spread over its devices, the same cards."""

import dataclasses

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.config import MeshConfig
from lorage_jax.generator import generator as module
from lorage_jax.sharding import Layout, make_mesh
from tests.tiny import make_generator

PROMPTS = ["Say it twice.", "Answer in French, and politely.", "No."]


@pytest.mark.parametrize("mesh", [MeshConfig(1, 4, 2), MeshConfig(2, 2, 2)])
def test_the_cards_are_those_of_one_device(pair, monkeypatch, mesh):
    made = make_generator(*pair)
    wanted = lg.specialize(made, PROMPTS)
    cloud = lg.load_model(pair[0], "float32", Layout(make_mesh(mesh)))
    seen, real = [], module.compiled_gates

    def watched(*args):
        seen.append(args[5])
        return real(*args)

    monkeypatch.setattr(module, "compiled_gates", watched)
    sharded = dataclasses.replace(made, cloud=cloud)
    found = lg.specialize(sharded, PROMPTS)
    assert len(found) == 3
    for ours, card in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.gates, card.gates, atol=1e-5)
    (tokens,) = seen  # three prompts, filled up to one per batch device
    assert tokens.shape[0] == 4
    assert {shard.data.shape[0] for shard in tokens.addressable_shards} == {1}
    np.testing.assert_allclose(lg.specialize(sharded, "No.").gates, wanted[2].gates, atol=1e-5)
