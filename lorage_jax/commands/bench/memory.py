"""`lorage bench memory`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.memory import bench_memory
from lorage_jax.commands.bench.options import Memory
from lorage_jax.commands.bench.shapes import check_context, cut, edge_shape
from lorage_jax.commands.bench.shown import shown


def run(options: Memory) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    name, full = edge_shape(options)
    edge = cut(full, options)
    counts = {
        "instruction": options.instruction_tokens,
        "input": options.input_tokens,
        "new": options.new_tokens,
    }
    check_context("edge", edge, **counts)
    tokens = {f"{kind}_tokens": count for kind, count in counts.items()}
    figures = {"shape": name} | bench_memory(edge, **tokens, dtype=options.dtype)
    return shown("memory", figures)
