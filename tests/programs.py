"""The train step as a program, traced or compiled on abstract arrays."""

import jax
import jax.numpy as jnp

from lorage_jax.config import DataConfig, ExperimentConfig, Source
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.sharding import Layout
from lorage_jax.train.experiment import build_step
from lorage_jax.train.state import shardings


def step_program(cloud, edge, mesh, *, prompts, queries, **settings):
    """(jitted step, its arguments as shapes, shardings of the state).

    `prompts` and `queries`: (rows, length) of a micro-batch.
    """
    settings = {"steps": 100, "remat": "none", "data": DataConfig((Source("x"),)), **settings}
    config = ExperimentConfig(cloud="", edge="", out="", **settings)
    models = {"cloud": cloud, "edge": edge}
    program = build_step(LoraGen, config, models, Layout(mesh))

    def array(size, dtype):
        return jax.ShapeDtypeStruct((config.optimizer.accumulate, *size), dtype)

    batch = Batch(
        (Rows(array(prompts, jnp.int32), array(prompts, bool)),),
        (Rows(array(queries, jnp.int32), array(queries, bool), array(queries, bool)),),
    )
    return program.step, (program.state, program.frozen, batch), shardings(program.state)
