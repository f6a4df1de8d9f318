"""libtpu on machines without a TPU, where it is installed for its compiler or by chance.

Without these settings it assumes a TPU, looks for it, and prints six lines of warnings at the start
of every program.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# Device files of Cloud TPU chips.
CHIPS = ("accel[0-9]*", "vfio/[0-9]*")


def installed() -> bool:
    """True if the package is installed."""
    return importlib.util.find_spec("libtpu") is not None


def settings(accelerator: str) -> dict[str, str]:
    """Environment under which libtpu assumes one host of `accelerator` and asks no server.

    They are read when JAX creates its first backend.
    """
    return {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def keep_quiet(devices: Path = Path("/dev")) -> None:
    """Silences libtpu's search for a TPU on a machine without TPU chips."""
    if installed() and not any(chip for pattern in CHIPS for chip in devices.glob(pattern)):
        for name, value in settings("v5litepod-1").items():
            os.environ.setdefault(name, value)
