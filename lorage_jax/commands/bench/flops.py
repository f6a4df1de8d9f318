"""`lorage bench flops`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.flops import bench_flops
from lorage_jax.commands.bench.options import Flops
from lorage_jax.commands.bench.paper import paper_macs
from lorage_jax.commands.bench.shapes import check_context, cloud_shape, cut, edge_shape
from lorage_jax.commands.bench.shown import shown
from lorage_jax.config import GeneratorConfig
from lorage_jax.hf.presets import shape_name


def run(options: Flops) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    name, full = edge_shape(options)
    edge = cut(full, options)
    cloud_name, cloud = cloud_shape(options.cloud_config)
    instruction, own = options.instruction_tokens, options.input_tokens
    check_context("edge", edge, instruction=instruction, input=own)
    check_context("cloud", cloud, instruction=instruction, meta=edge.layers)
    figures = bench_flops(
        edge,
        cloud,
        GeneratorConfig(),
        input_tokens=own,
        instruction_tokens=instruction,
        dtype=options.dtype,
    )
    about = {"shape": name, "cloud": cloud_name}
    return shown("flops", about | figures | paper_macs(shape_name(edge), options))
