"""W + (alpha / R) A B: values, the single cast, and no collective under any sharding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.config import PROJECTIONS, GeneratorConfig, MeshConfig
from lorage_jax.generator import merge as merging
from lorage_jax.generator.pool import assemble, assembled_rank, pool_leaves
from lorage_jax.hf.load import load_model
from lorage_jax.sharding import Layout, ShardingRules, make_mesh, tree_shardings
from tests.tiny import make_generator, random_card

COLLECTIVES = re.compile(
    r"all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"
)


@pytest.fixture(scope="module")
def world(tiny, cloud_dir):
    folder, _ = tiny("llama")
    gen = make_generator(cloud_dir, folder)
    return folder, gen, random_card(gen)


def ffn(model):
    return {name: np.asarray(model.params["layers"][name], np.float32) for name in PROJECTIONS}


def assert_close(left, right, atol=1e-6):
    for name in PROJECTIONS:
        np.testing.assert_allclose(ffn(left)[name], ffn(right)[name], atol=atol)


@pytest.mark.parametrize("scope", ["per_layer", "shared"])
@pytest.mark.parametrize("combine", ["factors", "products"])
def test_assemble_against_numpy(tiny, cloud_dir, combine, scope):
    """Against Eq. 8 in float64, expert by expert and layer by layer."""
    config = GeneratorConfig(
        rank=3, alpha=6.0, experts=5, top_k=2, combine=combine, pool_scope=scope
    )
    gen = make_generator(cloud_dir, tiny("llama")[0], config)
    gates = random_card(gen).gates
    rank = assembled_rank(gen.pool, gates)
    assert rank == (3 if combine == "factors" else 6)
    factors = assemble(gen.pool, jnp.asarray(gates), rank)
    for name in PROJECTIONS:
        a, b = (np.asarray(gen.pool.experts[name][x], np.float64) for x in "ab")
        for layer in range(3):
            ea, eb = (x[layer] if scope == "per_layer" else x for x in (a, b))
            g = gates[layer].astype(np.float64)
            if combine == "factors":
                want = sum(w * x for w, x in zip(g, ea, strict=True)) @ sum(
                    w * x for w, x in zip(g, eb, strict=True)
                )
            else:
                want = sum(w * x @ y for w, x, y in zip(g, ea, eb, strict=True))
            left, right = (np.asarray(x[layer], np.float64) for x in factors[name])
            np.testing.assert_allclose(left @ right, 2.0 * want, atol=1e-5)


def test_layerwise_and_donated_are_the_same(world):
    folder, gen, card = world
    edge = load_model(folder)
    before = ffn(edge)
    plain, report = merging.merge_with_report(edge, gen.pool, card)
    layered, layer_report = merging.merge_with_report(edge, gen.pool, card, layerwise=True)
    assert_close(plain, layered)
    assert report == layer_report
    for name in PROJECTIONS:  # the edge is unchanged and usable
        np.testing.assert_array_equal(ffn(edge)[name], before[name])
    assert plain.card is card and edge.card is None
    for layerwise in (False, True):
        used = load_model(folder)
        donated, _ = merging.merge_with_report(
            used, gen.pool, card, layerwise=layerwise, donate=True
        )
        assert_close(donated, plain)
        assert used.params["layers"]["gate"].is_deleted()
        assert not used.params["layers"]["q"].is_deleted()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("by_size", [False, True])
def test_layer_by_layer_to_another_dtype(world, monkeypatch, rounding, by_size):
    """Never all layers at once, whether asked for or because the weights are large."""
    folder, gen, card = world
    layout = Layout(make_mesh(MeshConfig(2, 2, 2)), ShardingRules())
    for edge in (load_model(folder), load_model(folder, layout=layout)):
        options = {"dtype": "bfloat16", "rounding": rounding, "seed": 3}
        whole = merging.merge(edge, gen.pool, card, **options)
        with monkeypatch.context() as patch:
            patch.setattr(merging, "compiled_merge", lambda *_: pytest.fail("all layers at once"))
            patch.setattr(merging, "LAYERWISE_BYTES", 0 if by_size else merging.GIB)
            found = merging.merge(
                edge, gen.pool, card, layerwise=None if by_size else True, donate=True, **options
            )
        for name in PROJECTIONS:
            ours, right = found.params["layers"][name], whole.params["layers"][name]
            assert ours.dtype == jnp.bfloat16 and ours.sharding == right.sharding
            np.testing.assert_array_equal(ffn(found)[name], ffn(whole)[name])
            assert not edge.params["layers"][name].is_deleted()  # of no use for another dtype


def test_one_cast(world):
    """bfloat16 weights: the sum is in float32 and rounded once; the report says how far."""
    folder, gen, card = world
    edge = load_model(folder, "bfloat16")
    card = type(card)(card.gates, card.generator, edge.fingerprint)
    merged, report = merging.merge_with_report(edge, gen.pool, card)
    factors = assemble(gen.pool, jnp.asarray(card.gates), gen.pool.rank)
    worst, still, count = 0.0, 0, 0
    for name in PROJECTIONS:
        assert merged.params["layers"][name].dtype == jnp.bfloat16
        old = ffn(edge)[name]
        a, b = (np.asarray(x, np.float64) for x in factors[name])
        exact = old + a @ b
        new = ffn(merged)[name]
        # Half a unit in the last place of bfloat16, and float32's own error.
        assert np.all(np.abs(new - exact) <= np.abs(exact) * 2.0**-8 + 1e-6)
        worst = max(worst, np.abs(new - exact).max())
        still, count = still + np.sum(new == old), count + new.size
    assert report.largest_rounding == pytest.approx(worst, rel=1e-3)
    assert report.share_unmoved == pytest.approx(still / count, rel=1e-6)
    assert report.weights == count
    assert 0 < report.share_unmoved < 0.1


FFN_ONLY = ShardingRules(embed=None, ffn=("fsdp", "tensor"))
INPUTS = ShardingRules(embed=("fsdp", "tensor"), heads=None, kv_heads=None, ffn=None, vocab=None)
TURNED = ShardingRules(embed="tensor", heads="fsdp", kv_heads="fsdp", ffn="fsdp", vocab="fsdp")


@pytest.mark.parametrize(
    ("mesh", "combine", "rules"),
    [
        ((8, 1, 1), "factors", ShardingRules()),
        ((2, 2, 2), "factors", ShardingRules()),
        ((1, 4, 2), "products", ShardingRules()),
        ((2, 2, 2), "factors", FFN_ONLY),
        ((2, 2, 2), "products", INPUTS),
        ((1, 2, 4), "factors", TURNED),
        *(
            pytest.param(mesh, combine, ShardingRules(), marks=pytest.mark.slow)
            for mesh, combine in [
                ((8, 1, 1), "products"),
                ((2, 2, 2), "products"),
                ((1, 4, 2), "factors"),
            ]
        ),
    ],
)
def test_no_collective_on_any_mesh(world, cloud_dir, mesh, combine, rules):
    folder, _, _ = world
    gen = make_generator(cloud_dir, folder, GeneratorConfig(rank=4, cloud_rank=0, combine=combine))
    card = random_card(gen)
    layout = Layout(make_mesh(MeshConfig(*mesh)), rules)
    edge = load_model(folder, layout=layout)
    leaves = pool_leaves(gen.config, gen.edge)
    shardings = tree_shardings(leaves, layout)
    pool = gen.pool.replace(experts=jax.device_put(gen.pool.experts, shardings))
    weights = {name: edge.params["layers"][name] for name in PROJECTIONS}
    gates, rank = jnp.asarray(card.gates), assembled_rank(pool, card.gates)
    factors = merging.compiled_assemble(pool, gates, rank)
    ways = tuple((name, weights[name].sharding) for name in PROJECTIONS)
    programs = [
        merging.compiled_assemble.lower(pool, gates, rank),
        merging.compiled_merge(ways, True).lower(weights, factors),
        merging._compiled_layer(weights["up"].sharding).lower(
            weights["up"], factors["up"][0][0], factors["up"][1][0], 0
        ),
    ]
    for program in programs:
        text = program.compile().as_text()
        assert "fusion" in text or "dot" in text
        assert not COLLECTIVES.findall(text)
    merged, report = merging.merge_with_report(edge, pool, card)
    layered, layer_report = merging.merge_with_report(edge, pool, card, layerwise=True)
    one, one_report = merging.merge_with_report(load_model(folder), gen.pool, card)
    assert_close(merged, one)
    assert_close(layered, one)
    assert report == layer_report == one_report
    for name in PROJECTIONS:
        assert merged.params["layers"][name].sharding == weights[name].sharding
        assert layered.params["layers"][name].sharding == weights[name].sharding
