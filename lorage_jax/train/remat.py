"""`remat="auto"`: activations are kept if a step on the longest batch then fits the devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.shown import with_shown
from lorage_jax.sharding import Layout, local_memory
from lorage_jax.train.experiment import Trainable, build_step
from lorage_jax.train.step import longest_batch, micro_sharding

SHARE = 0.92  # of a device's memory that a step may take; batches and checkpoints need some


def settled_remat(
    method: type[Trainable],
    config: ExperimentConfig,
    models: Mapping[str, ModelConfig],
    layout: Layout,
    *,
    recorded: str | None = None,
) -> ExperimentConfig:
    """The config with `none` or `full` for `remat`; unchanged unless it is `auto`.

    The step without recomputation is compiled for the longest possible batch. `full` is chosen if
    its memory exceeds a device's, or if the device does not report its memory, as a CPU: there,
    recomputing costs less than moving activations through memory.

    Args:
        method: the method to train.
        config: the experiment.
        models: configurations of the models in `method.frozen`.
        layout: mesh and rules of the run.
        recorded: the choice of the run that is resumed, which stays.
    """
    if config.remat != "auto":
        return config
    if recorded in ("none", "full"):
        return dataclasses.replace(config, remat=recorded)
    kept = dataclasses.replace(config, remat="none")
    limit = device_memory(layout)
    if limit is not None and step_memory(method, kept, models, layout) <= SHARE * limit:
        return kept
    return dataclasses.replace(config, remat="full")


def device_memory(layout: Layout) -> int | None:
    """`local_memory` of the devices in a mesh."""
    return local_memory(layout.mesh.devices.flat)


def step_memory(
    method: type[Trainable],
    config: ExperimentConfig,
    models: Mapping[str, ModelConfig],
    layout: Layout,
) -> float:
    """Bytes that a device needs for a step on the longest batch; infinite if XLA gives up."""
    batch = longest_of(method, config, layout)
    program = build_step(method, config, models, layout)
    try:
        compiled = program.step.lower(program.state, program.frozen, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return float("inf")
    return total_bytes(compiled)


def longest_of(
    method: type[Trainable],
    config: ExperimentConfig,
    layout: Layout,
    row_tokens: int | None = None,
) -> Batch:
    """`train.step.longest_batch` of a method's run, with all that its loss reads."""
    data, place = config.data, micro_sharding(layout)
    longest = data.max_query_tokens + data.max_prompt_tokens
    longer = dataclasses.replace(data, max_query_tokens=longest)
    own = longer if method.edge_reads_prompt(config) else data
    batch = longest_batch(own, config.optimizer.accumulate, place, row_tokens)
    if method.has_teacher(config):
        told = longest_batch(longer, config.optimizer.accumulate, place, row_tokens)
        batch = with_shown(batch, told)
    batch = method.longest(config, batch)
    return batch if method.prompt_reader() is not None else batch.replace(prompts=())


def total_bytes(compiled: Any) -> int:
    """Bytes of a compiled program's arguments, temporaries and outputs; donated ones count once."""
    sizes = compiled.memory_analysis()
    shared = sizes.alias_size_in_bytes
    return (
        sizes.argument_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.output_size_in_bytes
        - shared
    )
