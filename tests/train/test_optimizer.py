"""Weight decay, Muon's matrices, and the placement of moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lorage_jax.config import GeneratorConfig, MeshConfig, OptimizerConfig
from lorage_jax.generator.generator import trained_leaves
from lorage_jax.hf.family import family_decoder
from lorage_jax.models.leaves import Leaf, initialise, model_leaves
from lorage_jax.sharding import Layout, make_mesh, replicated, tree_shardings
from lorage_jax.train.optimizer import learning_rate, make_optimizer
from lorage_jax.train.state import abstract_state, moment_shardings, shardings

EDGE = family_decoder(
    "llama", vocab_size=40, width=16, layers=2, heads=4, kv_heads=2, ffn_width=24, tied_head=True
)


def test_biases_norms_and_magnitudes_are_not_decayed():
    names = ("kernel", "a", "gate", "embed", "bias", "q_bias", "scale", "attn_norm", "magnitude")
    params = {name: jnp.ones(3) for name in names}
    leaves = {name: Leaf((3,), ("embed",)) for name in names}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), 10, leaves)
    moments = optimizer.init(params)
    still = {name: jnp.zeros(3) for name in names}
    for _ in range(2):  # the first step of the warm-up has learning rate 0
        updates, moments = optimizer.update(still, moments, params)
    moved = {name for name, update in updates.items() if np.any(np.asarray(update) != 0)}
    assert moved == {"kernel", "a", "gate", "embed"}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_betas_and_clipping(kind):
    """A gradient of 1000 is clipped to 1; Adam has the config's betas (in Muon, with Nesterov)."""
    leaves = {"bias": Leaf((1,), ("embed",))}
    config = OptimizerConfig(0.1, kind, betas=(0.5, 0.75), warmup_steps=0, clip_norm=1.0)
    ours = make_optimizer(config, 10, leaves)
    theirs = optax.adam(learning_rate(config, 10), 0.5, 0.75, nesterov=kind == "muon")
    params = {"bias": jnp.ones(1)}
    states = [ours.init(params), theirs.init(params)]
    for large, clipped in ((1000.0, 1.0), (0.25, 0.25), (-0.5, -0.5)):
        one, states[0] = ours.update({"bias": jnp.full(1, large)}, states[0], params)
        two, states[1] = theirs.update({"bias": jnp.full(1, clipped)}, states[1], params)
        np.testing.assert_allclose(one["bias"], two["bias"], rtol=1e-5)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rate = learning_rate(OptimizerConfig(0.4, warmup_steps=4), 24)
    found = [float(rate(step)) for step in (0, 2, 4, 14, 24)]
    assert found == pytest.approx([0, 0.2, 0.4, 0.2, 0], abs=1e-6)


def test_what_is_a_matrix():
    """Layer and expert axes are left out; heads are joined with their channels."""
    edge = dataclasses.replace(EDGE, qkv_bias=True, tied_head=False)
    layers = model_leaves(edge)["layers"]
    found = {name: leaf.matrix for name, leaf in layers.items() if leaf.matrix}
    assert found == {
        **dict.fromkeys("qkv", ((1,), (2, 3))),
        "o": ((1, 2), (3,)),
        **dict.fromkeys(("gate", "up", "down"), ((1,), (2,))),
    }
    assert model_leaves(edge)["head"].matrix is None
    trained = trained_leaves(GeneratorConfig(), EDGE, EDGE)
    assert trained["meta"].matrix is None
    assert {leaf.matrix for leaf in jax.tree.leaves(trained["pool"])} == {((2,), (3,))}
    assert trained["adapters"]["q"]["b"].matrix == ((1,), (2, 3))
    shared = trained_leaves(GeneratorConfig(pool_scope="shared"), EDGE, EDGE)["pool"]
    assert {leaf.matrix for leaf in jax.tree.leaves(shared)} == {((1,), (2,))}


def muon(params, gradient, **changes):
    """Muon's update of one step at the peak learning rate."""
    settings = {"warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 0.0} | changes
    config = OptimizerConfig(0.1, "muon", **settings)
    optimizer = make_optimizer(config, 10, model_leaves(EDGE))
    update, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    return update


def test_muon_orthogonalises_every_layers_matrices():
    params = initialise(model_leaves(EDGE), jax.random.key(0))
    gradient = initialise(model_leaves(EDGE), jax.random.key(1))
    update = muon(params, gradient)
    shapes = {"q": (16, 16), "k": (16, 8), "o": (16, 16), "gate": (16, 24), "down": (24, 16)}
    for name, shape in shapes.items():
        for layer in range(EDGE.layers):
            matrix = np.asarray(update["layers"][name][layer]).reshape(shape)
            # All directions alike, with AdamW's size of updates: 0.2 per entry, x 3 x 0.1.
            values = np.linalg.svd(matrix, compute_uv=False)
            assert values.max() / values.min() < 2.5, name
            np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.06, rtol=0.25, err_msg=name)
    # Vectors and embeddings are left to Adam with Nesterov, whose first step is the sign.
    for name in ("embed", "final_norm"):
        step, towards = np.asarray(update[name]), np.asarray(gradient[name])
        assert (np.sign(step) == -np.sign(towards)).all(), name
        assert np.ptp(np.abs(step)) < 1e-3 < 0.1 <= np.abs(step).min(), name


def test_matrix_rate_scales_matrices_alone():
    params = initialise(model_leaves(EDGE), jax.random.key(0))
    one, two = (muon(params, params, matrix_rate=rate) for rate in (1.0, 2.0))
    np.testing.assert_allclose(2 * one["layers"]["up"], two["layers"]["up"], rtol=1e-5)
    np.testing.assert_array_equal(one["embed"], two["embed"])


def test_muon_decays_matrices_at_their_rate():
    params = initialise(model_leaves(EDGE), jax.random.key(0))
    plain, decayed = (muon(params, params, weight_decay=decay) for decay in (0.0, 0.5))
    for name, rate in (("up", 3 * 0.1), ("attn_norm", 0.0)):
        lost = plain["layers"][name] - decayed["layers"][name]
        np.testing.assert_allclose(lost, 0.5 * rate * params["layers"][name], atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_lie_where_their_parameters_do(kind):
    leaves = model_leaves(EDGE)
    layout = Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    places = tree_shardings(leaves, layout)
    optimizer = make_optimizer(OptimizerConfig(kind=kind, warmup_steps=1), 10, leaves)
    moments = moment_shardings(leaves, places, optimizer, layout)
    state = optimizer.init(initialise(leaves, jax.random.key(0)))
    assert jax.tree.structure(moments) == jax.tree.structure(state)
    found = {}
    for path, place in jax.tree_util.tree_leaves_with_path(moments):
        found.setdefault(jax.tree_util.keystr(path[-2:]), set()).add(place)
    assert found["['layers']['gate']"] == {places["layers"]["gate"]} != {replicated(layout.mesh)}
    assert found["['layers']['o']"] == {places["layers"]["o"]} != {replicated(layout.mesh)}


def test_every_trainers_moments_are_sharded():
    layout = Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    for leaves in (trained_leaves(GeneratorConfig(), EDGE, EDGE), model_leaves(EDGE)):
        optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), 10, leaves)
        state = shardings(abstract_state(leaves, {}, optimizer, layout))
        for name in ("mu", "nu"):
            assert optax.tree.get(state.optimizer, name) == state.trained
        assert not all(place.is_fully_replicated for place in jax.tree.leaves(state.trained))
