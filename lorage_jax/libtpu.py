"""libtpu where there is no TPU: it is installed for its compiler, or by chance.

Left alone, it looks for the TPU that it takes itself to be on, and says in six lines at the start
of every program that it found none.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# Where drivers of Cloud TPUs show their chips.
CHIPS = ("accel[0-9]*", "vfio/[0-9]*")


def installed() -> bool:
    """True if the package is installed."""
    return importlib.util.find_spec("libtpu") is not None


def settings(accelerator: str) -> dict[str, str]:
    """Environment by which libtpu takes itself to be on one host of `accelerator` and asks nobody.

    It is read when JAX's first backend is made.
    """
    return {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def keep_quiet(devices: Path = Path("/dev")) -> None:
    """On a machine without TPU chips, libtpu finds that without a word."""
    if installed() and not any(chip for pattern in CHIPS for chip in devices.glob(pattern)):
        for name, value in settings("v5litepod-1").items():
            os.environ.setdefault(name, value)
