"""`lorage bench export`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.export import bench_export
from lorage_jax.commands.bench.options import Export
from lorage_jax.commands.bench.shapes import cut, edge_shape
from lorage_jax.commands.bench.shown import shown


def run(options: Export) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    name, full = edge_shape(options)
    figures = bench_export(cut(full, options), options.repeats, options.dtype)
    return shown("export", {"shape": name} | figures)
