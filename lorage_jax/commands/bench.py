"""`lorage bench`: runs a measurement of `evaluate/` and prints it with the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.efficiency import bench_decode, bench_merge
from lorage_jax.evaluate.memory import bench_export
from lorage_jax.provenance import machine

if TYPE_CHECKING:
    from lorage_jax.cli import Bench

TINYLLAMA_LAYERS = 22


def bench(options: Bench) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    layers = TINYLLAMA_LAYERS if options.layers is None else options.layers
    if layers < 1 or options.repeats < 1:
        raise ConfigError(f"layers {layers} and repeats {options.repeats} must both be 1 or more.")
    run = {"merge": bench_merge, "decode": bench_decode, "export": bench_export}[options.what]
    result = {"bench": options.what, **run(layers, options.repeats, options.dtype)}
    for name, value in (result | machine()).items():
        print(f"{name:32}{value:.4g}" if isinstance(value, float) else f"{name:32}{value}")
    return result
