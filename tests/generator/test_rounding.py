"""Rounding to narrow dtypes: neighbours only, unbiased, the same for a seed on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lorage_jax.config import MeshConfig
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator.merge import Cast, merge, merge_with_report
from lorage_jax.generator.rounding import choose_rounding, round_to
from lorage_jax.hf.load import load_model
from lorage_jax.sharding import Layout, ShardingRules, make_mesh
from tests.tiny import make_generator, random_card

DTYPES = ("bfloat16", "float16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_stochastic_rounding_keeps_numbers_on_average(dtype):
    """Each goes to one of its two neighbours, as torch knows them; float16's subnormals, too."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=64) * 10.0 ** rng.integers(-7, 3, 64)
    exact = jnp.asarray(numbers, jnp.float32)
    draws = jax.vmap(lambda key: round_to(exact, jnp.dtype(dtype), key))(
        jax.random.split(jax.random.key(1), 4096)
    )
    found = np.asarray(draws, np.float64)
    wide, target = np.asarray(exact, np.float64), getattr(torch, dtype)
    nearest = torch.tensor(wide, dtype=torch.float32).to(target)
    inf = torch.tensor(float("inf"), dtype=target)
    below, above = (torch.nextafter(nearest, end).double().numpy() for end in (-inf, inf))
    near = nearest.double().numpy()
    low, high = np.where(near <= wide, near, below), np.where(near >= wide, near, above)
    assert np.all((found == low) | (found == high))
    error = np.abs(found.mean(0) - wide) / np.maximum(high - low, 1e-30)
    assert error.max() < 5 * 0.5 / 4096**0.5
    same = np.asarray(round_to(nearest.float().numpy() + jnp.zeros(64), jnp.dtype(dtype), None))
    kept = round_to(jnp.asarray(near, jnp.float32), jnp.dtype(dtype), jax.random.key(3))
    np.testing.assert_array_equal(np.asarray(kept), same)


def test_which_rounding():
    assert choose_rounding("stochastic", jnp.bfloat16, jnp.float32, float) == "nearest"
    assert choose_rounding("stochastic", jnp.float32, jnp.bfloat16, float) == "stochastic"
    assert choose_rounding("auto", jnp.bfloat16, jnp.bfloat16, lambda: 0.2) == "stochastic"
    assert choose_rounding("auto", jnp.float16, jnp.float16, lambda: 0.9) == "nearest"
    assert choose_rounding("auto", jnp.float32, jnp.bfloat16, lambda: -3.0) == "nearest"
    with pytest.raises(ConfigError, match="expected one of auto, nearest, stochastic"):
        choose_rounding("up", jnp.bfloat16, jnp.bfloat16, float)


@pytest.fixture(scope="module")
def world(tiny, cloud_dir):
    folder, _ = tiny("llama")
    gen = make_generator(cloud_dir, folder, strength=0.004)
    return folder, gen, random_card(gen)


def ffn(model):
    return {n: np.asarray(model.params["layers"][n], np.float32) for n in ("gate", "up", "down")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_gives_the_same_weights_on_any_devices(world, dtype):
    folder, gen, card = world
    edge = load_model(folder, dtype)
    how = {"rounding": "stochastic", "seed": 5}
    first = ffn(merge(edge, gen.pool, card, **how))
    layout = Layout(make_mesh(MeshConfig(2, 2, 2)), ShardingRules())
    sharded = load_model(folder, dtype, layout)
    for model, more in ((edge, {"layerwise": True}), (sharded, {}), (sharded, {"layerwise": True})):
        for name, value in ffn(merge(model, gen.pool, card, **how, **more)).items():
            np.testing.assert_array_equal(value, first[name])
    other = ffn(merge(edge, gen.pool, card, rounding="stochastic", seed=6))
    assert all(np.any(other[name] != first[name]) for name in first)


def test_every_layer_of_every_projection_draws_by_itself():
    weights = {name: jnp.zeros((3, 2, 2), jnp.bfloat16) for name in ("gate", "up", "down")}
    keys = Cast(rounding="stochastic", seed=1).keys(weights)
    drawn = [tuple(key) for one in keys.values() for key in jax.random.key_data(one).tolist()]
    assert len(set(drawn)) == 9


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_how_much_of_the_update_is_kept(world, rounding):
    """update_kept is what its formula says, from weights in numpy; also in a cast of the edge."""
    folder, gen, card = world
    wide = load_model(folder, "float32")
    for edge, dtype in ((load_model(folder, "bfloat16"), None), (wide, "bfloat16")):
        base = ffn(edge)
        exact = ffn(
            merge(edge.replace(params=jax.tree.map(jnp.float32, edge.params)), gen.pool, card)
        )
        special, report = merge_with_report(
            edge, gen.pool, card, rounding=rounding, seed=1, dtype=dtype
        )
        assert special.params["layers"]["up"].dtype == jnp.bfloat16
        lost = sum(np.sum((ffn(special)[n] - exact[n]).astype(np.float64) ** 2) for n in base)
        whole = sum(np.sum((exact[n] - base[n]).astype(np.float64) ** 2) for n in base)
        assert report.update_kept == pytest.approx(1 - lost / whole, rel=1e-2, abs=1e-3)
        assert report.rounding == rounding
    _, report = merge_with_report(wide, gen.pool, card, rounding=rounding)
    assert report.update_kept == pytest.approx(1.0, abs=1e-4) and report.rounding == "nearest"


def test_stochastic_rounding_keeps_a_small_update_on_average(world):
    """Nearest loses it in most weights; the mean over seeds comes near to the exact sum."""
    folder, gen, card = world
    edge, weak = load_model(folder, "bfloat16"), gen.pool.replace(scale=gen.pool.scale * 0.05)
    wide = edge.replace(params=jax.tree.map(jnp.float32, edge.params))
    exact, base = ffn(merge(wide, weak, card))["up"], ffn(edge)["up"]
    near = ffn(merge(edge, weak, card, rounding="nearest"))["up"]
    drawn = [
        ffn(merge(edge, weak, card, rounding="stochastic", seed=seed))["up"] for seed in range(24)
    ]
    update = np.sum((exact - base) ** 2)
    assert np.mean(near == base) > 0.25
    inner = [np.sum((one - base) * (exact - base)) / update for one in (near, np.mean(drawn, 0))]
    assert abs(inner[1] - 1) < 0.1 and inner[0] < 0.9
    assert merge_with_report(edge, weak, card)[1].rounding == "stochastic"
    assert merge_with_report(edge, gen.pool, card)[1].rounding == "nearest"


def test_an_overflow_in_float16_is_an_error(world):
    folder, gen, card = world
    edge = load_model(folder, "float16")
    loud = gen.pool.replace(scale=1e9)
    with pytest.raises(WeightsError, match="do not fit float16"):
        merge(edge, loud, card)
