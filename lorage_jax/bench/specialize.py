"""Time of the cloud pass over 64 prompts, in one batch and one by one."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import numpy as np

from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.buckets import bucket, left_pad
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.generator import compiled_gates, trained_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.models.bits import program_params
from lorage_jax.models.leaves import initialise
from lorage_jax.models.presets import random_model

PROMPTS = 64


def bench_specialize(
    edge: ModelConfig,
    cloud: ModelConfig,
    generator: GeneratorConfig,
    *,
    instruction_tokens: int,
    repeats: int,
    dtype: str,
) -> dict[str, Any]:
    """Times turning 64 prompts into gates, in one batch and in 64 blocking calls.

    Figures are seconds, medians of `repeats`. All prompts have `instruction_tokens` tokens and are
    padded like those of `specialize`.
    """
    model = random_model(cloud, dtype)
    params = program_params(model.params)
    trained = initialise(
        # The pool is large and not needed to make gates.
        {k: v for k, v in trained_leaves(generator, cloud, edge).items() if k != "pool"},
        jax.random.key(1),
    )
    running = initialise(statistics_leaves(generator, edge.layers), jax.random.key(2))
    ids = np.random.default_rng(0).integers(0, cloud.vocab_size, (PROMPTS, instruction_tokens))
    tokens, mask = left_pad(ids.tolist(), bucket(instruction_tokens))

    def gates(rows: slice) -> Any:
        return compiled_gates(generator, cloud, params, trained, running, tokens[rows], mask[rows])

    def one_by_one() -> None:
        for i in range(PROMPTS):
            jax.block_until_ready(gates(slice(i, i + 1)))

    times = in_turn({"batch": lambda: gates(slice(None)), "single": one_by_one}, repeats)
    batch, single = (statistics.median(times[name]) for name in ("batch", "single"))
    return {
        "prompts": PROMPTS,
        "instruction_tokens": instruction_tokens,
        "padded_tokens": tokens.shape[1],
        "meta_tokens": edge.layers,
        "cloud_layers": cloud.layers,
        "cloud_width": cloud.width,
        "dtype": dtype,
        "batch_seconds": batch,
        "single_calls_seconds": single,
        "ratio_batch_to_single": batch / single,
        "largest_spread_within_one": largest_spread(times),
    }
