"""Cross entropy against torch, the balance term against numpy (Eq. 9-10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.presets import SHAPES
from lorage_jax.models.decoder import head_logits
from lorage_jax.train import losses
from lorage_jax.train.losses import balance, cross_entropy, expert_usage, squared_cv


def test_cross_entropy_against_torch():
    rng = np.random.default_rng(0)
    logits = (5 * rng.standard_normal((3, 7, 11))).astype(np.float32)
    targets = rng.integers(0, 11, (3, 7)).astype(np.int32)
    mask = rng.random((3, 7)) < 0.6
    marked = torch.tensor(np.where(mask, targets, -100), dtype=torch.long)
    leaf = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.cross_entropy(
        leaf.reshape(-1, 11), marked.reshape(-1), ignore_index=-100, reduction="sum"
    )
    want.backward()

    def total(x):
        return cross_entropy(x, jnp.asarray(targets), jnp.asarray(mask))

    loss, count = total(jnp.asarray(logits))
    np.testing.assert_allclose(loss, want.detach().numpy(), rtol=1e-5)
    assert float(count) == mask.sum()
    slope = jax.grad(lambda x: total(x)[0])(jnp.asarray(logits))
    np.testing.assert_allclose(slope, leaf.grad.numpy(), atol=1e-5)
    assert np.all(np.asarray(slope)[~mask] == 0)


def test_cross_entropy_is_finite():
    """Also for huge logits; bfloat16 ones are computed in float32."""
    logits = jnp.asarray([[[1e4, -1e4, 0.0]]])
    loss, _ = cross_entropy(logits, jnp.asarray([[1]]), jnp.asarray([[True]]))
    np.testing.assert_allclose(loss, 2e4)
    loss, _ = cross_entropy(
        jnp.zeros((1, 300, 3), jnp.bfloat16),
        jnp.zeros((1, 300), jnp.int32),
        jnp.ones((1, 300), bool),
    )
    np.testing.assert_allclose(loss, 300 * np.log(3), rtol=1e-5)
    empty = cross_entropy(logits, jnp.asarray([[1]]), jnp.asarray([[False]]))
    assert [float(x) for x in empty] == [0.0, 0.0]


def test_squared_cv_against_numpy():
    """Gates summed over the batch, unbiased variance over experts, mean over layers."""
    gates = np.random.default_rng(0).dirichlet(np.ones(6), (5, 3)).astype(np.float32)
    want = []
    for layer in range(3):
        importance = gates[:, layer].sum(axis=0)
        variance = ((importance - importance.mean()) ** 2).sum() / (6 - 1)
        want.append(variance / importance.mean() ** 2)
    np.testing.assert_allclose(squared_cv(jnp.asarray(gates)), np.mean(want), rtol=1e-5)


def test_squared_cv_at_the_ends():
    even = jnp.full((4, 2, 8), 1 / 8)
    np.testing.assert_allclose(squared_cv(even), 0, atol=1e-6)
    # Rows may be unbalanced as long as the batch is balanced.
    np.testing.assert_allclose(squared_cv(jnp.eye(8)[:, None]), 0, atol=1e-6)
    collapsed = jnp.zeros((4, 2, 8)).at[..., 3].set(1.0)
    np.testing.assert_allclose(squared_cv(collapsed), 8.0, rtol=1e-5)  # n for a collapse
    slope = jax.grad(squared_cv)(collapsed)
    assert np.all(np.isfinite(slope)) and np.all(slope[..., 3] > slope[..., 0])


def test_the_balance_term_is_weighed_and_its_metric_is_not():
    gates = jnp.asarray(np.random.default_rng(3).random((4, 2, 3)), jnp.float32)
    penalty, metrics = balance(gates, 0.5)
    np.testing.assert_allclose(metrics["cv"], squared_cv(gates))
    np.testing.assert_allclose(penalty, 0.5 * metrics["cv"])
    np.testing.assert_allclose(metrics["gate_mass"], np.mean(gates, axis=0), rtol=1e-6)


def test_expert_usage():
    """Selection frequency; sums to K."""
    gates = jnp.asarray([[[0.7, 0.3, 0.0]], [[0.0, 0.5, 0.5]]])
    np.testing.assert_allclose(expert_usage(gates), [[0.5, 1.0, 0.5]])
    assert float(expert_usage(gates).sum()) == 2.0


@pytest.mark.parametrize(("tied", "cap"), [(False, None), (True, 3.0)])
def test_frozen_head_nll(monkeypatch, tied, cap):
    """Chunks of 3 slots, the last one partly empty, give the same as all logits at once."""
    monkeypatch.setattr(losses, "CHUNK", 3)
    config = family_decoder(
        "llama",
        vocab_size=13,
        width=6,
        layers=1,
        heads=1,
        kv_heads=1,
        ffn_width=8,
        tied_head=tied,
        final_softcap=cap,
    )
    rng = np.random.default_rng(0)
    shape = (13, 6) if tied else (6, 13)
    head = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {"embed" if tied else "head": head}
    hidden = jnp.asarray(3 * rng.standard_normal((4, 10, 6)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 13, (4, 10)), jnp.int32)
    mask = rng.random((4, 10)) < 0.6
    mask[:, 3:6] = False  # a chunk without targets
    mask = jnp.asarray(mask)

    def chunked(hidden):
        return 0.7 * losses.frozen_head_nll(config, params, hidden, targets, mask)

    def plain(hidden):
        return 0.7 * cross_entropy(head_logits(config, params, hidden), targets, mask)[0]

    (found, slope), (wanted, other) = (
        jax.jit(jax.value_and_grad(f))(hidden) for f in (chunked, plain)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(chunked(hidden), wanted, rtol=1e-6)
    assert np.abs(other).max() > 0.1
    np.testing.assert_allclose(slope, other, atol=1e-6)


def test_frozen_head_nll_in_bfloat16():
    """Gradients have the dtype of the states."""
    config = SHAPES["tinyllama"]
    shape = (config.width, config.vocab_size)
    params = {"head": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    hidden = jax.ShapeDtypeStruct((2, 100, config.width), jnp.bfloat16)
    targets = jax.ShapeDtypeStruct((2, 100), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 100), jnp.bool_)
    jaxpr = jax.make_jaxpr(
        lambda *arrays: jax.value_and_grad(losses.frozen_head_nll, argnums=2)(config, *arrays)
    )(params, hidden, targets, mask)
    assert [x.dtype for x in jaxpr.out_avals] == [jnp.float32, jnp.bfloat16]
    assert f"{100},{config.vocab_size}]" not in str(jaxpr)  # no logits of all slots
