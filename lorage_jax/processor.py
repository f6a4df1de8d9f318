"""The processor of this machine: its name, and what it can do that decides how fast we are."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux; elsewhere there is only what Python knows
TELLING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # flags that matter here


def name() -> str:
    """The processor and its telling flags: "AMD EPYC 7B12 (avx2)"."""
    model = _first("model name") or platform.processor() or platform.machine()
    found = [flag for flag in flags().split() if flag in TELLING]
    return f"{model} ({', '.join(found)})" if found else model


def flags() -> str:
    """All instruction sets, as Linux lists them; elsewhere, Python's word for the processor."""
    return _first("flags", "Features") or platform.processor()


def _first(*keys: str) -> str:
    """The value of the first line of CPUINFO that begins with one of `keys`, or ""."""
    try:
        lines = CPUINFO.read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), "")
