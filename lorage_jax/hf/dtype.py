"""The dtype `auto`: what weights are loaded in when nobody asks for a dtype."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from lorage_jax.chips import GIB
from lorage_jax.config import ModelConfig
from lorage_jax.errors import WeightsError
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.models.presets import parameter_count

_log = logging.getLogger(__name__)
AUTO = "auto"
CGROUP = Path("/sys/fs/cgroup")


def choose_dtype(dtype: str, config: ModelConfig, platform: str) -> str:
    """Returns `dtype`, or for `auto` bfloat16 on TPU and GPU and float32 on a CPU.

    On a CPU, bfloat16 is faster only with instructions for it (AVX512-BF16), and small updates of
    the weights round away in it. So it is taken there only for a model that does not fit the memory
    in float32, with a warning.
    """
    if dtype != AUTO:
        return dtype
    if platform != "cpu":
        return "bfloat16"
    needed, free = 4 * parameter_count(config), free_memory()
    if free is None or needed <= free:
        return "float32"
    _log.warning(
        "float32 weights would take %.1f GiB, of which %.1f GiB are free; the model is loaded in "
        "bfloat16.",
        needed / GIB,
        free / GIB,
    )
    return "bfloat16"


def check_dtype(dtype: str) -> None:
    """Raises WeightsError for an unknown name."""
    if dtype not in (AUTO, *DTYPES):
        raise WeightsError(f"dtype is {dtype!r}; expected one of {AUTO}, {', '.join(DTYPES)}.")


def free_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        found += [int(one.split()[1]) << 10 for one in lines if one.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        most = int((CGROUP / "memory.max").read_text("utf-8"))  # "max" where there is no limit
        found.append(most - int((CGROUP / "memory.current").read_text("utf-8")))
    except (OSError, ValueError):
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
