"""A training step of a family, as the edge and as the cloud: the gradient is the loss's slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, MeshConfig, Source
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.generator.generator import Parts, prompt_gates
from lorage_jax.generator.meta_tokens import CloudReader, Prompts
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train.generator import generator_loss
from tests.tiny import make_generator

CONFIG = ExperimentConfig(
    cloud="",
    edge="",
    out="",
    data=DataConfig((Source("x"),)),
    generator=GeneratorConfig(rank=4, alpha=8.0, cloud_rank=4, dropout=0.0, top_k=2),
    steps=100,
    remat="none",
)


def batch():
    """Two prompts, one padded on the left, with two queries each."""
    rng = np.random.default_rng(3)
    prompts, queries = rng.integers(3, 250, (2, 14)), rng.integers(3, 250, (4, 13))
    real = np.ones((2, 14), bool)
    real[1, :5] = False
    wanted = np.zeros((4, 13), bool)
    wanted[:, 7:] = True
    rows = Rows(jnp.asarray(prompts, jnp.int32), jnp.asarray(real))
    asked = Rows(jnp.asarray(queries, jnp.int32), jnp.ones((4, 13), bool), jnp.asarray(wanted))
    return Batch((rows,), (asked,))


@pytest.mark.slow  # a step of a llama under which a qwen2 trains is taken in every run
@pytest.mark.parametrize(
    "variant", ["gemma3_text", "opt", "phi3", "granite", "olmo2", "mistral", "qwen3", "smollm3"]
)
def test_a_step_as_edge_and_as_cloud(tiny, variant):
    folder, _ = tiny(variant)
    generator = make_generator(folder, folder, CONFIG.generator)
    layout = Layout(make_mesh(MeshConfig(1, 1, 2), jax.devices()[:2]))
    params = load_model(folder, layout=layout).params
    edge = generator.edge
    assert set(generator.trained["pool"]) == set(edge.projections)
    loss = generator_loss(CONFIG, edge, edge, layout)
    given, key = batch(), jax.random.key(0)

    @jax.jit
    def slope(trained):
        def nll(trained):
            frozen = {"cloud": params, "edge": params}
            return loss(trained, generator.statistics, frozen, given, key).nll / 24

        parts = Parts(trained, generator.statistics)
        prompts, gate_key = Prompts(given.prompts), jax.random.split(key)[0]
        gates = prompt_gates(CloudReader(CONFIG.generator, edge), params, parts, prompts, gate_key)
        return *jax.value_and_grad(nll)(trained), gates[0]

    value, gradient, gates = slope(generator.trained)
    (rows,) = given.queries
    model, gates = load_model(folder), np.repeat(np.asarray(gates), 2, axis=0)
    logits = forward(model, rows.tokens[:, :-1], gates=gates, pool=generator.pool)
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), rows.tokens[:, 1:, None], axis=2)
    assert value == pytest.approx(float(each[:, 6:].mean()), rel=1e-4)
    norm = float(jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(gradient))))
    assert 1 < value < 30 and norm > 0.05
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        if not name.endswith("['f2']['bias']"):  # BatchNorm takes away what it adds
            assert jnp.abs(leaf).max() > 1e-6, name
    size = 1e-3 / norm**2

    def moved(sign):
        return jax.tree.map(lambda x, g: x + sign * size * g, generator.trained, gradient)

    found = (slope(moved(1))[0] - slope(moved(-1))[0]) / (2 * size)
    assert found == pytest.approx(norm**2, rel=0.02)
