"""The rate at which a machine multiplies matrices: the bound of every program's arithmetic."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lorage_jax.bench.timing import seconds
from lorage_jax.files.dtypes import DTYPES

CPU_SIZES, SIZES = (1024, 2048), (4096, 8192)  # widths of square matrices
REPEATS = 5


def matmul_rate(dtype: str, sizes: tuple[int, ...] | None = None) -> float:
    """Measures FLOP/s of the first device on products of square matrices; the fastest call counts.

    Args:
        dtype: of the operands; the result is float32. float32 operands are multiplied in full
            precision, as in `ops`.
        sizes: widths to try; by default some that suit the platform.
    """
    if sizes is None:
        sizes = CPU_SIZES if jax.default_backend() == "cpu" else SIZES
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    product = jax.jit(
        functools.partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32)
    )
    rates = []
    for size in sizes:
        # Random numbers: on constant ones, a GPU uses less power and is faster.
        matrix = jax.random.normal(jax.random.key(0), (size, size), DTYPES[dtype])
        call = functools.partial(product, matrix, matrix)
        seconds(call)  # compiles
        rates += [2 * size**3 / seconds(call) for _ in range(REPEATS)]
    return max(rates)
