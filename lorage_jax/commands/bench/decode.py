"""`lorage bench decode`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.decode import bench_decode
from lorage_jax.commands.bench.options import Decode
from lorage_jax.commands.bench.shapes import cut, edge_shape
from lorage_jax.commands.bench.shown import shown


def run(options: Decode) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    name, full = edge_shape(options)
    figures = bench_decode(cut(full, options), options.repeats, options.dtype)
    return shown("decode", {"shape": name} | figures)
