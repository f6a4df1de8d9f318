"""What is decayed, what Muon orthogonalises, and where moments lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.config import MeshConfig, OptimizerConfig
from lorage_jax.evaluate.shapes import plain_decoder
from lorage_jax.models.leaves import Leaf, initialise, model_leaves
from lorage_jax.sharding import ShardingRules, make_mesh, replicated, tree_shardings
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.state import moment_shardings

EDGE = plain_decoder(
    "llama", vocab_size=40, width=16, layers=2, heads=4, kv_heads=2, ffn_width=24, tied_head=True
)


def test_biases_and_norms_are_not_decayed():
    names = ("kernel", "a", "gate", "embed", "bias", "q_bias", "scale", "attn_norm", "final_norm")
    params = {name: jnp.ones(3) for name in names}
    leaves = {name: Leaf((3,), ("embed",)) for name in names}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), 10, leaves)
    moments = optimizer.init(params)
    still = {name: jnp.zeros(3) for name in names}
    for _ in range(2):  # the first step of the warm-up has learning rate 0
        updates, moments = optimizer.update(still, moments, params)
    moved = {name for name, update in updates.items() if np.any(np.asarray(update) != 0)}
    assert moved == {"kernel", "a", "gate", "embed"}


def muon(params, gradient, **changes):
    """The update of one step at the peak of the learning rate, by Muon."""
    config = OptimizerConfig(
        0.1, "muon", warmup_steps=0, weight_decay=0.0, clip_norm=0.0, **changes
    )
    optimizer = make_optimizer(config, 10, model_leaves(EDGE))
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    return update


def test_muon_orthogonalises_every_layers_matrices():
    params = initialise(model_leaves(EDGE), jax.random.key(0))
    gradient = initialise(model_leaves(EDGE), jax.random.key(1))
    update = muon(params, gradient)
    shapes = {"q": (16, 16), "k": (16, 8), "o": (16, 16), "gate": (16, 24), "down": (24, 16)}
    for name, shape in shapes.items():
        for layer in range(EDGE.layers):
            matrix = np.asarray(update["layers"][name][layer]).reshape(shape)
            # All directions at once, as large as AdamW would move them: 0.2 an entry, x 3 x 0.1.
            values = np.linalg.svd(matrix, compute_uv=False)
            assert values.max() / values.min() < 2.5, name
            np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.06, rtol=0.25, err_msg=name)
    # Vectors and the table of embeddings are Adam's (Nesterov's): its first step is the sign.
    for name in ("embed", "final_norm"):
        step, towards = np.asarray(update[name]), np.asarray(gradient[name])
        assert (np.sign(step) == -np.sign(towards)).all(), name
        assert np.ptp(np.abs(step)) < 1e-3 < 0.1 <= np.abs(step).min(), name


def test_matrix_rate_scales_matrices_alone():
    params = initialise(model_leaves(EDGE), jax.random.key(0))
    one, two = (muon(params, params, matrix_rate=rate) for rate in (1.0, 2.0))
    np.testing.assert_allclose(2 * one["layers"]["up"], two["layers"]["up"], rtol=1e-5)
    np.testing.assert_array_equal(one["embed"], two["embed"])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_lie_where_their_parameters_do(kind):
    leaves = model_leaves(EDGE)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = tree_shardings(leaves, ShardingRules(), mesh)
    optimizer = make_optimizer(OptimizerConfig(kind=kind, warmup_steps=1), 10, leaves)
    moments = moment_shardings(leaves, places, optimizer, mesh)
    state = optimizer.init(initialise(leaves, jax.random.key(0)))
    assert jax.tree.structure(moments) == jax.tree.structure(state)
    found = {}
    for path, place in jax.tree_util.tree_leaves_with_path(moments):
        found.setdefault(jax.tree_util.keystr(path[-2:]), set()).add(place)
    assert found["['layers']['gate']"] == {places["layers"]["gate"]} != {replicated(mesh)}
    assert found["['layers']['o']"] == {places["layers"]["o"]} != {replicated(mesh)}
