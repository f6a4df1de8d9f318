"""The compiled train step: what lies where on a mesh."""

import re

import jax
import jax.numpy as jnp

from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)
from lorage_jax.generator.generator import trained_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import plain_decoder, structs
from lorage_jax.sharding import ShardingRules, make_mesh, tree_shardings
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.state import TrainState, state_shardings
from lorage_jax.train.step import make_train_step


def test_weights_come_to_the_rows_layer_by_layer():
    """On an FSDP mesh no device holds all rows of an activation, nor all layers of a weight whole,
    nor logits of all slots.
    """
    sizes = {"vocab_size": 88, "heads": 4, "kv_heads": 2}
    cloud = plain_decoder("llama", width=64, layers=5, ffn_width=96, **sizes)
    edge = plain_decoder("llama", width=48, layers=3, ffn_width=104, tied_head=True, **sizes)
    config = ExperimentConfig(
        cloud="cloud",
        edge="edge",
        out="out",
        data=DataConfig((Source("x"),), prompts_per_batch=16),
        generator=GeneratorConfig(rank=4, cloud_rank=4),
        optimizer=OptimizerConfig(warmup_steps=1),
        steps=2,
    )
    mesh, rules = make_mesh(MeshConfig(1, 8, 1)), ShardingRules()
    leaves = trained_leaves(config.generator, cloud, edge)
    optimizer = make_optimizer(config.optimizer, config.steps, leaves)
    trained = structs(leaves, "float32")
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        trained,
        structs(statistics_leaves(config.generator, edge.layers), "float32"),
        jax.eval_shape(optimizer.init, trained),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
    )
    frozen = {"cloud": model_leaves(cloud), "edge": model_leaves(edge)}
    step = make_train_step(
        config,
        cloud,
        edge,
        optimizer,
        state_shardings(config.generator, cloud, edge, optimizer, mesh, rules),
        tree_shardings(frozen, rules, mesh),
        mesh,
        rules,
    )

    def arrays(length, dtype):
        return [jax.ShapeDtypeStruct((1, 16, length), dtype)]

    batch = {
        "prompt_tokens": arrays(20, jnp.int32),
        "prompt_mask": arrays(20, jnp.bool_),
        "query_tokens": arrays(131, jnp.int32),
        "query_mask": arrays(131, jnp.bool_),
        "loss_mask": arrays(131, jnp.bool_),
    }
    text = step.lower(state, structs(frozen, "float32"), batch).compile().as_text()
    shapes = set(re.findall(r"f32\[([\d,]+)\]", text))
    assert {"2,23,64", "2,130,48", "2,64,88"} <= shapes  # two rows a device; a chunk's logits
    assert {"5,8,96", "3,6,104"} <= shapes  # an eighth of every layer
    for whole in ("16,23,64", "16,130,48", "5,64,96", "3,48,104", "2,130,88"):
        assert whole not in shapes
