"""What groups of queries under one prompt save: the training step at B rows, in P prompts x Q."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Source,
)
from lorage_jax.generator.generator import trained_leaves
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import random_model
from lorage_jax.sharding import ShardingRules, make_mesh, tree_shardings
from lorage_jax.train.arithmetic import cloud_flops, step_flops
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.state import new_state, state_shardings
from lorage_jax.train.step import device_batch, make_train_step, micro_sharding

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
    dtype: str,
) -> dict[str, Any]:
    """Seconds of a step, tokens of the edge a second, and the cloud's share of the arithmetic, each
    for Q = 1, 2, 4, 8 queries a prompt with `rows` (a multiple of 8) queries in all.

    Random weights and full-length random tokens, on all devices: nothing is padding.
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
    fewest = rows // max(QUERIES)  # prompts, which must divide over the devices
    mesh, rules = make_mesh(MeshConfig(-1, -1, -1), rows=fewest), ShardingRules()
    optimizer = make_optimizer(
        OptimizerConfig(), steps=STEPS, leaves=trained_leaves(generator, cloud, edge)
    )
    models = {"cloud": cloud, "edge": edge}
    placed = {name: tree_shardings(model_leaves(m), rules, mesh) for name, m in models.items()}
    made = {name: random_model(m, dtype, placed[name]) for name, m in models.items()}
    frozen = {name: model.params for name, model in made.items()}
    shardings = state_shardings(generator, cloud, edge, optimizer, mesh, rules)
    state = new_state(generator, made["cloud"], edge, optimizer, 0, shardings)

    def stepper(queries: int) -> Callable[[], Any]:
        config = ExperimentConfig(
            cloud="",
            edge="",
            out="",
            data=data[queries],
            steps=STEPS,
            generator=generator,
            dtype=dtype,
        )
        step = make_train_step(config, cloud, edge, optimizer, shardings, placed, mesh, rules)
        batch = device_batch(batches[queries], 1, micro_sharding(rules, mesh))

        def run() -> Any:
            nonlocal state
            state, metrics = step(state, frozen, batch)
            return metrics

        return run

    times = in_turn({f"q{queries}": stepper(queries) for queries in QUERIES}, repeats)
    result: dict[str, Any] = {
        "rows": rows,
        "prompt_tokens": prompt_tokens,
        "query_tokens": query_tokens,
        "cloud_layers": cloud.layers,
        "edge_layers": edge.layers,
        "dtype": dtype,
    }
    for queries, batch in batches.items():
        models = (generator, cloud, edge)
        share = cloud_flops(*models, batch) / step_flops(*models, batch)
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


def random_batch(data: DataConfig, cloud: ModelConfig, edge: ModelConfig) -> dict[str, Any]:
    """As `data.batches.Encoder.batch` gives it: one chunk, all tokens real, half of a query's ones
    targets.
    """
    rng = np.random.default_rng(0)
    prompts = (data.prompts_per_batch, data.max_prompt_tokens)
    queries = (data.rows, data.max_query_tokens)
    target = np.broadcast_to(np.arange(queries[1]) >= queries[1] // 2, queries)
    return {
        "prompt_tokens": (rng.integers(0, cloud.vocab_size, prompts, np.int32),),
        "prompt_mask": (np.ones(prompts, bool),),
        "query_tokens": (rng.integers(0, edge.vocab_size, queries, np.int32),),
        "query_mask": (np.ones(queries, bool),),
        "loss_mask": (target,),
    }
