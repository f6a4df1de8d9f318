"""Time of the training step with Q queries per prompt, at a fixed number of queries."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    ModelConfig,
    Source,
)
from lorage_jax.data.batches import Batch, host_rows
from lorage_jax.data.packing import pack
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.models.bits import program_params
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import random_model
from lorage_jax.sharding import Layout, make_mesh, tree_shardings
from lorage_jax.train.experiment import build_step, new_state
from lorage_jax.train.flops import cloud_flops, step_flops
from lorage_jax.train.step import device_batch, micro_sharding

QUERIES = (1, 2, 4, 8)  # Q
STEPS = 1000  # of the learning rate's schedule


def bench_train(
    edge: ModelConfig,
    cloud: ModelConfig,
    generator: GeneratorConfig,
    *,
    rows: int,
    prompt_tokens: int,
    query_tokens: int,
    repeats: int,
    dtype: Literal["float32", "bfloat16"],
) -> dict[str, Any]:
    """Times the training step with 1, 2, 4 and 8 queries per prompt.

    For each, the result has seconds per step (medians), edge tokens per second, and the cloud's
    share of the arithmetic. Weights and tokens are random, all rows have full length (no padding),
    and all devices take part.

    Args:
        rows: queries per batch, a multiple of 8.
        prompt_tokens: tokens of a prompt.
        query_tokens: tokens of a query, target included.
    """
    data = {
        queries: DataConfig(
            sources=(Source("synthetic", "synthetic"),),  # not read
            prompts_per_batch=rows // queries,
            queries_per_prompt=queries,
            max_prompt_tokens=prompt_tokens,
            max_query_tokens=query_tokens,
        )
        for queries in QUERIES
    }
    batches = {queries: random_batch(one, cloud, edge) for queries, one in data.items()}
    experiments = {queries: _experiment(one, generator, dtype) for queries, one in data.items()}
    steppers = _steppers(experiments, batches, {"cloud": cloud, "edge": edge})
    times = in_turn(steppers, repeats)
    result: dict[str, Any] = {
        "rows": rows,
        "prompt_tokens": prompt_tokens,
        "query_tokens": query_tokens,
        "cloud_layers": cloud.layers,
        "edge_layers": edge.layers,
        "dtype": dtype,
    }
    for queries, batch in batches.items():
        pair = (generator, cloud, edge)
        share = cloud_flops(*pair, batch) / step_flops(*pair, batch)
        seconds = statistics.median(times[f"q{queries}"])
        result |= {
            f"q{queries}_step_seconds": seconds,
            f"q{queries}_edge_tokens_per_second": rows * query_tokens / seconds,
            f"q{queries}_cloud_share_of_arithmetic": share,
        }
    fastest, slowest = (
        result[f"q{queries}_edge_tokens_per_second"] for queries in (QUERIES[-1], QUERIES[0])
    )
    return result | {
        f"ratio_q{QUERIES[-1]}_to_q{QUERIES[0]}": fastest / slowest,
        "largest_spread_within_one": largest_spread(times),
    }


def _steppers(
    experiments: dict[int, ExperimentConfig],
    batches: dict[int, Batch],
    models: dict[str, ModelConfig],
) -> dict[str, Callable[[], Any]]:
    """Calls by name that take a step with Q queries per prompt; all share weights and state."""
    fewest = experiments[max(QUERIES)].data.prompts_per_batch  # must divide over the devices
    layout = Layout(make_mesh(MeshConfig(-1, -1, -1), rows=fewest))
    programs = {
        queries: build_step(LoraGen, config, models, layout)
        for queries, config in experiments.items()
    }
    first, dtype = programs[QUERIES[0]], experiments[QUERIES[0]].dtype
    frozen = {
        name: program_params(
            random_model(model, dtype, tree_shardings(model_leaves(model), layout)).params
        )
        for name, model in models.items()
    }
    state = new_state(first, frozen, 0)

    def stepper(queries: int) -> Callable[[], Any]:
        batch = device_batch(batches[queries], 1, micro_sharding(layout))

        def run() -> Any:
            nonlocal state
            state, metrics = programs[queries].step(state, frozen, batch)
            return metrics

        return run

    return {f"q{queries}": stepper(queries) for queries in QUERIES}


def _experiment(
    data: DataConfig, generator: GeneratorConfig, dtype: Literal["float32", "bfloat16"]
) -> ExperimentConfig:
    return ExperimentConfig(
        cloud="", edge="", out="", data=data, steps=STEPS, generator=generator, dtype=dtype
    )


def random_batch(data: DataConfig, cloud: ModelConfig, edge: ModelConfig) -> Batch:
    """A batch like the pipeline's, without padding; the second half of a query is its target.

    With `packed_rows`, texts are packed, each of full length.
    """
    if data.packed_rows is not None:
        return _random_packed_batch(data, cloud, edge)
    rng = np.random.default_rng(0)
    prompts = (data.prompts_per_batch, data.max_prompt_tokens)
    queries = (data.rows, data.max_query_tokens)
    target = np.broadcast_to(np.arange(queries[1]) >= queries[1] // 2, queries)
    read = rng.integers(0, cloud.vocab_size, prompts, np.int32)
    asked = rng.integers(0, edge.vocab_size, queries, np.int32)
    return Batch(
        (host_rows(tokens=read, mask=np.ones(prompts, bool)),),
        (host_rows(tokens=asked, mask=np.ones(queries, bool), loss_mask=target),),
    )


def _random_packed_batch(data: DataConfig, cloud: ModelConfig, edge: ModelConfig) -> Batch:
    assert data.packed_rows is not None
    rng = np.random.default_rng(0)
    longest = data.prompts_per_row * data.max_prompt_tokens
    texts = rng.integers(0, cloud.vocab_size, (data.prompts_per_batch, data.max_prompt_tokens))
    _, prompts = pack(texts.tolist(), data.packed_rows, longest, longest, 0)
    longest = data.prompts_per_row * data.queries_per_prompt * data.max_query_tokens
    texts = rng.integers(0, edge.vocab_size, (data.rows, data.max_query_tokens))
    order, queries = pack(texts.tolist(), data.packed_rows, longest, longest, 0)
    target = queries["positions"] >= data.max_query_tokens // 2
    owner = (order // data.queries_per_prompt).astype(np.int32)
    rows = host_rows(**queries, loss_mask=target, owner=owner)
    return Batch((host_rows(**prompts),), (rows,))
