"""`lorage bench specialize`."""

from __future__ import annotations

from typing import Any

import jax

from lorage_jax.bench.specialize import bench_specialize
from lorage_jax.commands.bench.options import Specialize
from lorage_jax.commands.bench.shapes import check_context, cloud_shape, cut, edge_shape
from lorage_jax.commands.bench.shown import shown
from lorage_jax.config import GeneratorConfig
from lorage_jax.hf.family import family_decoder

CPU_CLOUD = family_decoder(
    "llama", vocab_size=32_000, width=512, layers=4, heads=8, kv_heads=2, ffn_width=1792
)


def run(options: Specialize) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    name, full = edge_shape(options)
    edge = cut(full, options)
    if options.cloud_config is None and jax.default_backend() == "cpu":
        cloud_name, cloud = "small, for a CPU", CPU_CLOUD
    else:
        cloud_name, cloud = cloud_shape(options.cloud_config)
    check_context("cloud", cloud, instruction=options.instruction_tokens, meta=edge.layers)
    figures = bench_specialize(
        edge,
        cloud,
        GeneratorConfig(),
        instruction_tokens=options.instruction_tokens,
        repeats=options.repeats,
        dtype=options.dtype,
    )
    about = {"shape": name, "cloud": cloud_name}
    return shown("specialize", about | figures)
