"""Decoding time with merged weights, against the base weights: the same program runs both."""

from __future__ import annotations

import statistics
from typing import Any

from lorage_jax.bench.edge import random_edge
from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.config import ModelConfig
from lorage_jax.generator.merge import merge
from lorage_jax.infer.generate import generate_tokens


def bench_decode(
    config: ModelConfig,
    repeats: int,
    dtype: str,
    *,
    batch: int = 1,
    prompt_tokens: int = 32,
    new_tokens: int = 32,
) -> dict[str, Any]:
    """Times greedy decoding with merged weights against the base weights.

    Seconds are for `new_tokens` new tokens after prompts of `prompt_tokens` tokens, in `batch`
    rows; base and merged take turns. Medians of `repeats` calls.
    """
    edge, pool, card = random_edge(config, dtype)
    special = merge(edge, pool, card)
    rows = [[i % config.vocab_size for i in range(1, prompt_tokens + 1)]] * batch
    times = in_turn(
        {
            "base": lambda: generate_tokens(edge, rows, max_new_tokens=new_tokens),
            "merged": lambda: generate_tokens(special, rows, max_new_tokens=new_tokens),
        },
        repeats,
    )
    base, merged = (statistics.median(times[name]) for name in ("base", "merged"))
    return {
        "layers": config.layers,
        "dtype": dtype,
        "base_seconds": base,
        "merged_seconds": merged,
        "ratio_merged_to_base": merged / base,
        "largest_spread_within_one": largest_spread(times),
    }
