"""The programs' arithmetic and shapes, traced on a mesh of CPU devices; nothing is compiled."""

import dataclasses

import jax
import numpy as np
import pytest

from lorage_jax.aot.programs import (
    Setting,
    decode_program,
    model_macs,
    programs,
    specialize_program,
)
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)
from lorage_jax.data.batches import Encoder, TokenGroup
from lorage_jax.data.templates import Conversation
from lorage_jax.hf.family import family_decoder
from lorage_jax.models.presets import parameter_count
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train.step import device_batch, longest_batch, micro_sharding
from tests.data.conftest import cloud, edge  # noqa: F401  fixtures

DATA = DataConfig(
    (Source("synthetic", "synthetic"),),
    prompts_per_batch=16,
    queries_per_prompt=2,
    max_prompt_tokens=32,
    max_query_tokens=48,
)
LLAMA = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
S, T, P, B, R = 32, 48, 16, 32, 4


def setting(cloud_layers=2, edge_layers=3, remat="none"):
    config = ExperimentConfig(
        cloud="c",
        edge="e",
        out="o",
        data=DATA,
        steps=100,
        generator=GeneratorConfig(rank=R, cloud_rank=R, dropout=0.0),
        remat=remat,
    )
    return Setting(
        config,
        family_decoder("llama", layers=cloud_layers, **LLAMA),
        family_decoder("qwen2", layers=edge_layers, **LLAMA),
        Layout(make_mesh(MeshConfig(1, 8, 1))),
    )


def macs(**fields):
    return {program.name: program.macs for program in programs(setting(**fields))}


def test_depth_costs_what_a_layer_costs():
    """Two depths of the cloud differ by exactly a layer's matrix products."""
    two, three, four = (macs(cloud_layers=depth) for depth in (2, 3, 4))
    slots = S + 3  # the meta tokens follow the prompt
    weights = 2 * 32 * (32 + 16) + 3 * 32 * 48  # q and o, k and v, FFN
    scores = 2 * slots * 32
    adapters = R * (2 * 32 + 32 + 16)  # q and v
    forward = slots * (weights + scores + adapters)
    assert three["specialize"] - two["specialize"] == 8 * forward  # one prompt per device
    layer = three["train_step"] - two["train_step"]
    assert four["train_step"] - three["train_step"] == layer
    # Through frozen weights, only the inputs have a gradient: as much as the forward pass again.
    # Attention and adapters have two gradients; attention may recompute its scores.
    backward = slots * (weights + 2 * scores + 2 * adapters)
    assert 0 <= layer - P * (forward + backward) <= P * slots * scores
    assert three["merge"] == two["merge"] and three["decode"] == two["decode"]


def test_decoding_counts_a_token_of_every_device():
    three, two = macs(edge_layers=3)["decode"], macs(edge_layers=2)["decode"]
    cache = 48 + 64 + 1  # the longest query, new tokens, and the token itself
    weights = 2 * 32 * (32 + 16) + 3 * 32 * 48
    assert three - two == 8 * (weights + 2 * cache * 32)


@pytest.mark.parametrize(("chip", "whole"), [(2.0, True), (1.9, False)])
def test_decoding_moves_no_weights(chip, whole):
    """An edge of at most half a chip is whole on each, with a row per chip; a larger one is split
    over as few chips as hold it in half of their memory.
    """
    made = setting()
    size = 2 * parameter_count(made.edge)  # bfloat16
    made = dataclasses.replace(made, chip_bytes=chip * size)
    params, cache, *_ = decode_program(made).arguments
    gate, tokens = params["layers"]["gate"], cache.k
    assert gate.sharding.is_fully_replicated is whole
    assert params["embed"].sharding.is_fully_replicated is (whole or 97 % 2 != 0)
    rows = tokens.sharding.shard_shape(tokens.shape)[1]
    assert (rows, tokens.shape[1]) == ((1, 8) if whole else (1, 4))
    assert gate.sharding.shard_shape(gate.shape)[2] == (48 if whole else 48 // 2)


def test_remat_computes_a_layer_again():
    kept, again = setting(), setting(remat="full")
    assert model_macs(again) == model_macs(kept)
    assert programs(again)[0].macs > 1.2 * model_macs(again)


@pytest.mark.parametrize(("accumulate", "chunks", "rows"), [(1, 1, None), (2, 4, None), (1, 1, 4)])
def test_the_longest_batch_is_one_of_the_pipelines(cloud, edge, accumulate, chunks, rows):  # noqa: F811
    data = dataclasses.replace(DATA, prompt_chunks=chunks, packed_rows=rows)
    query = Conversation([3] * 48, [False] * 40 + [True] * 8)
    groups = [TokenGroup([3] * S, [query] * 2, i, 0) for i in range(P)]
    batch = Encoder(data, cloud, edge).batch(groups)
    mesh = make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2])
    place = micro_sharding(Layout(mesh))
    real = device_batch(batch, accumulate, place)
    expected = longest_batch(data, accumulate, place)

    def described(x):
        return x.shape, np.dtype(x.dtype), x.sharding

    assert jax.tree.map(described, real) == jax.tree.map(described, expected)


@pytest.mark.parametrize("rows", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_a_typical_step_is_shorter(rows):
    """As many rows, but shorter: everything that depends on the length is a third."""
    whole = setting()
    data = dataclasses.replace(DATA, packed_rows=rows, max_prompt_tokens=48)
    config = dataclasses.replace(whole.config, data=data)
    typical = dataclasses.replace(whole, config=config, row_tokens=16)
    names = [program.name for program in programs(typical)]
    assert names == ["train_step", "typical_step", "specialize", "merge", "decode"]
    longest, shorter = programs(typical)[:2]
    for program, tokens in ((longest, None), (shorter, 16)):
        assert program.macs == model_macs(typical, tokens)
        batch = program.arguments[2]
        assert (batch.prompts[0].tokens.shape[-1] == 16) is (tokens == 16)
    assert shorter.macs < 0.6 * longest.macs


def test_micro_batches_cost_what_the_batch_costs():
    whole = setting()
    config = dataclasses.replace(whole.config, optimizer=OptimizerConfig(accumulate=2))
    parts = dataclasses.replace(whole, config=config)
    per_batch = model_macs(whole) - model_macs(parts)
    assert abs(per_batch) < 0.02 * model_macs(whole)


def test_batches_of_rows_and_cards():
    """A batch is filled up to the chips; a card per row costs each token the experts' factors."""
    made = setting()
    one, many = (decode_program(made, rows, tokens=20) for rows in (1, 12))
    assert [x.arguments[1].k.shape[1] for x in (one, many)] == [8, 16]
    assert many.macs == 2 * one.macs
    cards = decode_program(made, 12, tokens=20, cards=True)
    assert cards.name == "decode_cards"
    assert cards.macs - many.macs == 16 * 3 * made.config.generator.experts * R * 3 * (32 + 48)
    prompts = specialize_program(made, 12, tokens=20)
    assert prompts.arguments[3].shape == (16, 24)
