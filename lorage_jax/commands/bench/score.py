"""`lorage bench score`."""

from __future__ import annotations

from typing import Any

from lorage_jax.bench.peers import share_the_gpu
from lorage_jax.bench.score import bench_score
from lorage_jax.commands.bench.options import Score
from lorage_jax.commands.bench.shown import shown


def run(options: Score) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    share_the_gpu()
    figures = bench_score(
        options.model,
        options.repeats,
        options.dtype,
        records=options.records,
        questions=options.questions,
    )
    return shown("score", figures)
