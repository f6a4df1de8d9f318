"""Time of decoding with merged weights: the same program as with the base, other numbers."""

from __future__ import annotations

import statistics
from typing import Any

from lorage_jax.bench.edge import random_edge
from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.config import ModelConfig
from lorage_jax.generator.merge import merge
from lorage_jax.infer.generate import generate_tokens


def bench_decode(config: ModelConfig, repeats: int, dtype: str) -> dict[str, Any]:
    """Greedy decoding by the merged model against the base: the same program, other numbers.

    Seconds for 32 tokens behind a prompt of 32, one row, base and merged in turn.
    """
    edge, pool, card = random_edge(config, dtype)
    special = merge(edge, pool, card)
    rows = [list(range(1, 33))]
    times = in_turn(
        {
            "base": lambda: generate_tokens(edge, rows, max_new_tokens=32),
            "merged": lambda: generate_tokens(special, rows, max_new_tokens=32),
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
