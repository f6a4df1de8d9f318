"""`lorage bench decode`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.decode import bench_decode
from lorage_jax.bench.generation import compare_decode
from lorage_jax.bench.peers import share_the_gpu
from lorage_jax.commands.bench.options import Decode
from lorage_jax.commands.bench.shapes import (
    check_context,
    check_no_shape,
    cut,
    edge_shape,
    folder_shape,
)
from lorage_jax.commands.bench.shown import shown


def run(options: Decode) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    tokens = {"prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens}
    counts = {"prompt": options.prompt_tokens, "new": options.new_tokens}
    settings = tokens | {"batch": options.batch}
    if options.model is not None:
        share_the_gpu()
        check_no_shape(options)
        check_context("model", folder_shape(options.model), **counts)
        figures = compare_decode(
            options.model, **settings, repeats=options.repeats, dtype=options.dtype
        )
        return shown("decode", figures)
    name, full = edge_shape(options)
    check_context("edge", full, **counts)
    figures = bench_decode(cut(full, options), options.repeats, options.dtype, **settings)
    return shown("decode", {"shape": name} | figures)
