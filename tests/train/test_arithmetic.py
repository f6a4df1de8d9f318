"""The arithmetic of a step by formula, against a walk over the program that runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, MeshConfig, Source
from lorage_jax.evaluate.flops import matmul_macs
from lorage_jax.evaluate.shapes import SHAPES, structs, with_layers
from lorage_jax.generator.generator import trained_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.models.leaves import model_leaves
from lorage_jax.sharding import ShardingRules, make_mesh, tree_shardings
from lorage_jax.train import arithmetic
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.state import TrainState, state_shardings
from lorage_jax.train.step import make_train_step


@pytest.mark.parametrize(
    ("edge", "combine"), [("tinyllama", "factors"), ("qwen2-1.5b", "products")]
)
def test_step_flops(edge, combine):
    """At the paper's widths. The program counts one product more: it computes the attention's
    scores a second time for the gradient.
    """
    cloud, edge = with_layers(SHAPES["llama3-8b"], 2), with_layers(SHAPES[edge], 2)
    generator = GeneratorConfig(combine=combine)
    config = ExperimentConfig(
        cloud="",
        edge="",
        out="",
        data=DataConfig(sources=(Source("x"),), prompts_per_batch=2),
        generator=generator,
        steps=100,
        remat="none",
    )
    leaves = trained_leaves(generator, cloud, edge)
    optimizer = make_optimizer(config.optimizer, 100, leaves)
    mesh, rules = make_mesh(MeshConfig(), jax.devices()[:1]), ShardingRules()
    shardings = state_shardings(generator, cloud, edge, optimizer, mesh, rules)
    models = {"cloud": model_leaves(cloud), "edge": model_leaves(edge)}
    frozen_shardings = tree_shardings(models, rules, mesh)
    step = make_train_step(config, cloud, edge, optimizer, shardings, frozen_shardings, mesh, rules)
    trained = structs(leaves, "float32")
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        trained=trained,
        statistics=structs(statistics_leaves(generator, edge.layers), "float32"),
        optimizer=jax.eval_shape(optimizer.init, trained),
        key=jax.ShapeDtypeStruct((2,), jnp.uint32),
    )
    sizes = {"prompt_tokens": (2, 96), "query_tokens": (4, 129)}
    arrays = {name: (np.zeros(size, np.int32),) for name, size in sizes.items()}
    arrays |= {"prompt_mask": (np.zeros(sizes["prompt_tokens"], bool),)}
    arrays |= {
        name: (np.zeros(sizes["query_tokens"], bool),) for name in ("query_mask", "loss_mask")
    }
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), arrays)
    walked = 2 * matmul_macs(step.trace(state, structs(models, "bfloat16"), batch).jaxpr)
    counted = arithmetic.step_flops(generator, cloud, edge, arrays)
    assert 0.995 < counted / walked < 1.0


def test_peak_of_all_devices(monkeypatch):
    assert arithmetic.peak_flops() is None  # of a CPU
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(arithmetic.PEAK_FLOPS, kind, 2e12)
    assert arithmetic.peak_flops() == 16e12
