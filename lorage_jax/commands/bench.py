"""`lorage bench`: runs a measurement of `evaluate/` and prints it with the machine."""

from __future__ import annotations

import os
import platform
from typing import Any

import jax

from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.efficiency import bench_decode, bench_merge
from lorage_jax.evaluate.memory import bench_export


def bench(what: str, layers: int, repeats: int, dtype: str) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    if layers < 1 or repeats < 1:
        raise ConfigError(f"layers {layers} and repeats {repeats} must both be 1 or more.")
    run = {"merge": bench_merge, "decode": bench_decode, "export": bench_export}[what]
    result = {"bench": what, **run(layers, repeats, dtype), **machine()}
    for name, value in result.items():
        print(f"{name:32}{value:.4g}" if isinstance(value, float) else f"{name:32}{value}")
    return result


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
