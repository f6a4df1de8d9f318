"""Router and gates: Eq. 3-7 against torch, and BatchNorm in training and generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorage_jax.config import GeneratorConfig
from lorage_jax.errors import ConfigError
from lorage_jax.generator.router import gate, route, router_leaves, statistics_leaves
from lorage_jax.models.leaves import initialise

P, L, C, E = 5, 3, 12, 6


def make(scope, seed=0, **fields):
    """Config, random parameters, statistics away from (0, 1), hidden states."""
    config = GeneratorConfig(experts=E, top_k=2, router_width=7, router_scope=scope, **fields)
    rng = np.random.default_rng(seed)

    def noise(x):
        return x + jnp.asarray(rng.uniform(0.1, 0.9, x.shape), jnp.float32)

    params = jax.tree.map(noise, initialise(router_leaves(config, C, L), jax.random.key(seed)))
    statistics = jax.tree.map(noise, initialise(statistics_leaves(config, L), jax.random.key(1)))
    hidden = jnp.asarray(rng.standard_normal((P, L, C)), jnp.float32)
    return config, params, statistics, hidden


def torch_router(params, statistics, hidden, train):
    """f2(SiLU(f1(x))), BatchNorm1d over rows; its logits and running statistics afterwards."""
    t = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), {"p": params, "s": statistics})
    p, s = t["p"], t["s"]
    norm = torch.nn.BatchNorm1d(E, eps=1e-5, momentum=0.1)
    with torch.no_grad():
        norm.weight.copy_(p["norm"]["scale"])
        norm.bias.copy_(p["norm"]["bias"])
        norm.running_mean.copy_(s["norm"]["mean"])
        norm.running_var.copy_(s["norm"]["var"])
        norm.train(train)
        x = torch.tensor(np.asarray(hidden)).reshape(-1, C)
        x = torch.nn.functional.silu(x @ p["f1"]["kernel"] + p["f1"]["bias"])
        x = norm(x @ p["f2"]["kernel"] + p["f2"]["bias"])
    rows = np.prod(hidden.shape[:-1])
    mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
    return x.reshape(*hidden.shape[:-1], E), mean, var, rows


def torch_gates(logits, top_k):
    probabilities = torch.softmax(logits, -1)
    top, chosen = probabilities.topk(top_k, -1)
    out = torch.zeros_like(probabilities)
    return out.scatter(-1, chosen, top / top.sum(-1, keepdim=True)).numpy()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("scope", ["shared", "per_layer"])
def test_against_torch(scope, train):
    """Batch statistics in training, running ones in generation; BatchNorm is the last operation."""
    config, params, statistics, hidden = make(scope)
    gates, after = route(config, params, statistics, hidden, train=train, key=None)
    assert gates.shape == (P, L, E)
    layers = range(L) if scope == "per_layer" else [slice(None)]
    for layer in layers:
        one = (lambda x: x) if scope == "shared" else (lambda x, layer=layer: x[layer])
        logits, mean, var, rows = torch_router(
            jax.tree.map(one, params), jax.tree.map(one, statistics), hidden[:, layer], train
        )
        np.testing.assert_allclose(gates[:, layer], torch_gates(logits, 2), atol=1e-5)
        ours = jax.tree.map(one, after)["norm"]
        np.testing.assert_allclose(ours["mean"], mean, atol=1e-5)
        if train:
            # torch keeps the unbiased variance, flax the biased: n / (n - 1) in the new part.
            old = np.asarray(one(statistics["norm"]["var"]))
            var = 0.9 * old + (var - 0.9 * old) * (rows - 1) / rows
        np.testing.assert_allclose(ours["var"], var, atol=1e-5)


@pytest.mark.parametrize("scope", ["shared", "per_layer"])
def test_what_a_row_depends_on(scope):
    """Generation: a prompt's gates do not depend on its neighbours. Training: they do."""
    config, params, statistics, hidden = make(scope)
    for train in (True, False):
        all_, _ = route(config, params, statistics, hidden, train=train, key=None)
        some, _ = route(config, params, statistics, hidden[:3], train=train, key=None)
        assert np.allclose(all_[:3], some, atol=1e-6) == (not train)


@pytest.mark.parametrize("scope", ["shared", "per_layer"])
def test_running_statistics_are_used_after_training(scope):
    """After many steps on one batch, generation gives the same as training."""
    config, params, statistics, hidden = make(scope)
    step = jax.jit(lambda s: route(config, params, s, hidden, train=True, key=None))
    for _ in range(150):
        trained, statistics = step(statistics)
    generated, after = route(config, params, statistics, hidden, train=False, key=None)
    np.testing.assert_allclose(generated, trained, atol=1e-4)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, statistics))


def test_layers_share_a_router_or_do_not():
    """shared: statistics over all layers. per_layer: other layers' rows change nothing."""
    for scope, same in (("shared", False), ("per_layer", True)):
        config, params, statistics, hidden = make(scope)
        gates, _ = route(config, params, statistics, hidden, train=True, key=None)
        changed, _ = route(
            config, params, statistics, hidden.at[:, 1].multiply(-3), train=True, key=None
        )
        assert np.allclose(gates[:, 0], changed[:, 0], atol=1e-6) == same


def test_without_batch_norm():
    config, params, statistics, hidden = make("shared", batch_norm=False)
    assert statistics == {} and "norm" not in params
    one, after = route(config, params, statistics, hidden, train=True, key=None)
    alone, _ = route(config, params, statistics, hidden[:1], train=True, key=None)
    np.testing.assert_allclose(one[:1], alone, atol=1e-6)
    assert after == {}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, E), st.floats(0.01, 30))
def test_gates_are_a_top_k_distribution(seed, top_k, size):
    config = GeneratorConfig(experts=E, top_k=top_k)
    logits = size * np.random.default_rng(seed).standard_normal((2, L, E)).astype(np.float32)
    gates = np.asarray(gate(config, jnp.asarray(logits), None))
    np.testing.assert_allclose(gates.sum(-1), 1, atol=1e-6)
    # An open gate may underflow to 0 in float32; never more than K are open.
    assert np.all((gates > 0).sum(-1) <= top_k)
    if size < 10:
        assert np.all((gates > 0).sum(-1) == top_k)
    kept = np.take_along_axis(gates, np.argsort(-logits, axis=-1)[..., top_k:], axis=-1)
    assert np.all(kept == 0)


def test_exactly_k_open_on_ties():
    for top_k in (1, 2, 5):
        gates = gate(GeneratorConfig(experts=E, top_k=top_k), jnp.zeros((1, L, E)), None)
        assert np.all((np.asarray(gates) > 0).sum(-1) == top_k)
        np.testing.assert_allclose(gates.sum(-1), 1, atol=1e-6)


def test_gradients_reach_the_open_gates_only():
    config = GeneratorConfig(experts=E, top_k=2)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, E)), jnp.float32)
    weights = jnp.arange(E, dtype=jnp.float32)
    slope = jax.grad(lambda x: jnp.sum(gate(config, x, None) * weights))(logits)[0, 0]
    open_ = np.asarray(gate(config, logits, None))[0, 0] > 0
    assert np.all(np.abs(slope[open_]) > 1e-4)
    np.testing.assert_allclose(slope[~open_], 0, atol=1e-6)


def test_gumbel():
    """Eq. 4-5: all gates are open; noise needs a key, in training only; temperature sharpens."""
    config, params, statistics, hidden = make("shared", routing="gumbel", gumbel_temperature=0.7)
    key, other = jax.random.key(1), jax.random.key(2)
    calm, _ = route(config, params, statistics, hidden, train=False, key=key)
    again, _ = route(config, params, statistics, hidden, train=False, key=other)
    np.testing.assert_array_equal(calm, again)
    noisy, _ = route(config, params, statistics, hidden, train=True, key=key)
    other_noise, _ = route(config, params, statistics, hidden, train=True, key=other)
    assert np.abs(noisy - other_noise).max() > 0.05
    for gates in (calm, noisy):
        np.testing.assert_allclose(gates.sum(-1), 1, atol=1e-6)
        assert np.all(np.asarray(gates) > 0)
    logits = jnp.asarray([[[0.0, 1.0, 2.0, 0.0, 0.0, 0.5]]])
    want = jax.nn.softmax(logits / 0.7)
    np.testing.assert_allclose(gate(config, logits, None), want, atol=1e-6)
    # Gumbel noise: the winner is distributed as softmax of the logits, at any temperature.
    sharp = dataclasses.replace(config, gumbel_temperature=1e-3)
    many = gate(sharp, jnp.broadcast_to(logits, (4000, 1, E)), key)
    wins = np.bincount(np.asarray(many).argmax(-1).ravel(), minlength=E) / 4000
    np.testing.assert_allclose(wins, jax.nn.softmax(logits)[0, 0], atol=0.03)


def test_config_refuses_nonsense():
    for fields in ({"top_k": 9}, {"top_k": 0}, {"experts": 1, "top_k": 1}, {"routing": "best"}):
        with pytest.raises(ConfigError):
            GeneratorConfig(**fields)
