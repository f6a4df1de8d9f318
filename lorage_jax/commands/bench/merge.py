"""`lorage bench merge`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.merge import bench_merge
from lorage_jax.commands.bench.options import Merge
from lorage_jax.commands.bench.shapes import cut, edge_shape
from lorage_jax.commands.bench.shown import shown


def run(options: Merge) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    name, full = edge_shape(options)
    figures = bench_merge(cut(full, options), options.repeats, options.dtype)
    return shown("merge", {"shape": name} | figures)
