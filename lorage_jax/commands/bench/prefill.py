"""`lorage bench prefill`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.generation import compare_prefill
from lorage_jax.bench.peers import share_the_gpu
from lorage_jax.commands.bench.options import Prefill
from lorage_jax.commands.bench.shapes import check_context, folder_shape
from lorage_jax.commands.bench.shown import shown


def run(options: Prefill) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    share_the_gpu()
    check_context("model", folder_shape(options.model), prompt=options.prompt_tokens, new=1)
    figures = compare_prefill(
        options.model,
        batch=options.batch,
        prompt_tokens=options.prompt_tokens,
        repeats=options.repeats,
        dtype=options.dtype,
    )
    return shown("prefill", figures)
