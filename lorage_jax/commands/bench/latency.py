"""`lorage bench latency`."""

from __future__ import annotations

from typing import Any

import jax

from lorage_jax.bench.latency import bench_latency
from lorage_jax.commands.bench.options import Latency
from lorage_jax.commands.bench.paper import paper_latency
from lorage_jax.commands.bench.shapes import check_context, cut, edge_shape
from lorage_jax.commands.bench.shown import shown
from lorage_jax.hf.presets import shape_name
from lorage_jax.models.presets import with_layers

CPU_LAYERS = 4  # full depth takes minutes per request on a CPU


def run(options: Latency) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    name, full = edge_shape(options)
    edge = cut(full, options)
    if options.layers is None and jax.default_backend() == "cpu":
        edge = with_layers(full, min(CPU_LAYERS, full.layers))
    counts = {
        "instruction": options.instruction_tokens,
        "input": options.input_tokens,
        "new": options.new_tokens,
    }
    check_context("edge", edge, **counts)
    figures = bench_latency(
        edge,
        **{f"{kind}_tokens": count for kind, count in counts.items()},
        repeats=options.repeats,
        dtype=options.dtype,
    )
    about = {"shape": name, "depth": f"{edge.layers} of {full.layers} layers"}
    figures = about | figures | paper_latency(shape_name(full), options)
    return shown("latency", figures)
