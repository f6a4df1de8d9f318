"""The train step as a program: traced or compiled on shapes, without weights."""

import jax
import jax.numpy as jnp

from lorage_jax.config import DataConfig, ExperimentConfig, Source
from lorage_jax.generator.generator import trained_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import structs
from lorage_jax.sharding import ShardingRules, tree_shardings
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.state import TrainState, state_shardings
from lorage_jax.train.step import make_train_step


def step_program(cloud, edge, mesh, *, prompts, queries, **settings):
    """(jitted step, its arguments as shapes, shardings of the state).

    `prompts` and `queries`: (rows, length) of a micro-batch.
    """
    config = ExperimentConfig(
        cloud="",
        edge="",
        out="",
        data=DataConfig(sources=(Source("x"),)),
        steps=100,
        remat="none",
        **settings,
    )
    leaves = trained_leaves(config.generator, cloud, edge)
    optimizer = make_optimizer(config.optimizer, 100, leaves)
    rules = ShardingRules()
    shardings = state_shardings(config.generator, cloud, edge, optimizer, mesh, rules)
    models = {"cloud": model_leaves(cloud), "edge": model_leaves(edge)}
    placed = tree_shardings(models, rules, mesh)
    step = make_train_step(config, cloud, edge, optimizer, shardings, placed, mesh, rules)
    trained = structs(leaves, "float32")
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        trained=trained,
        statistics=structs(statistics_leaves(config.generator, edge.layers), "float32"),
        optimizer=jax.eval_shape(optimizer.init, trained),
        key=jax.ShapeDtypeStruct((2,), jnp.uint32),
    )

    def rows(size, dtype):
        return (jax.ShapeDtypeStruct((config.optimizer.accumulate, *size), dtype),)

    batch = {
        "prompt_tokens": rows(prompts, jnp.int32),
        "prompt_mask": rows(prompts, bool),
        "query_tokens": rows(queries, jnp.int32),
        "query_mask": rows(queries, bool),
        "loss_mask": rows(queries, bool),
    }
    return step, (state, structs(models, config.dtype), batch), shardings
