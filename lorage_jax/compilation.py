"""The persistent cache of compiled programs, so that a command compiles them once per machine."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

VARIABLE = "LORAGE_CACHE"  # another folder; "off" turns the cache off
MOST_BYTES = 2 << 30  # the oldest programs go first
SHORTEST_SECONDS = 0.5  # programs that compile faster are not kept


def cache_folder(root: Path) -> Path:
    """The folder under `root` for this JAX version and processor.

    A program compiled for one processor may not run on another.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    digest = hashlib.sha256(processor.encode()).hexdigest()[:8]
    return root / f"jax-{version('jax')}-{platform.machine()}-{digest}"


def keep_programs() -> None:
    """Makes JAX keep compiled programs in ~/.cache/lorage_jax or in $LORAGE_CACHE.

    Call it before JAX is imported. A cache that is already configured through JAX's own variables
    stays; a folder that cannot be written turns the cache off.
    """
    place = os.environ.get(VARIABLE, "")
    if place == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder(Path(place or "~/.cache/lorage_jax").expanduser())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(SHORTEST_SECONDS))
