"""Compiled programs: kept between commands, so that a machine compiles them once, and counted."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorage_jax.errors import ConfigError
from lorage_jax.fields import home_path
from lorage_jax.processor import flags

VARIABLE = "LORAGE_CACHE"  # another folder; "off" turns the cache off
MOST_BYTES = 2 << 30  # the oldest programs go first
SHORTEST_SECONDS = 0.5  # programs that compile faster are not kept


def cache_folder(root: Path) -> Path:
    """The folder under `root` for this JAX version and processor.

    A program compiled for one processor may not run on another.
    """
    digest = hashlib.sha256(flags().encode()).hexdigest()[:8]
    return root / f"jax-{version('jax')}-{platform.machine()}-{digest}"


def keep_programs() -> None:
    """Makes JAX keep compiled programs in ~/.cache/lorage_jax or in $LORAGE_CACHE.

    Call it before JAX is imported. A cache that is already configured through JAX's own variables
    stays; a folder that cannot be written turns the cache off.
    """
    place = os.environ.get(VARIABLE, "")
    if place == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder(home_path(place or "~/.cache/lorage_jax"))
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ConfigError):
        return
    if not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(SHORTEST_SECONDS))


class Compilations:
    """Counts the programs that are compiled, and the time it takes, while the block runs.

    Attributes:
        programs: how many; those read from the persistent cache count, too.
        seconds: wall time of tracing, lowering and compiling them.
    """

    _PHASES = "/jax/core/compile/"
    _LAST = "/jax/core/compile/backend_compile_duration"

    def __init__(self):
        self.programs = 0
        self._spans: list[tuple[float, float]] = []  # disjoint, in order

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self._spans)

    def figures(self) -> dict[str, float]:
        """Both figures, as JSON values."""
        return {"programs": self.programs, "seconds": self.seconds}

    def __enter__(self) -> Compilations:
        import jax.monitoring  # not before `keep_programs`

        jax.monitoring.register_event_time_span_listener(self._record)
        return self

    def __exit__(self, *_: Any) -> None:
        import jax.monitoring

        jax.monitoring.unregister_event_time_span_listener(self._record)

    def _record(self, event: str, start_time: float, end_time: float, **kwargs: Any) -> None:
        if not event.startswith(self._PHASES):
            return
        self.programs += event == self._LAST
        while self._spans and self._spans[-1][0] >= start_time:  # of functions inside this one
            self._spans.pop()
        self._spans.append((start_time, end_time))


def compilation_text(programs: int, seconds: float, most: int | None = None) -> str:
    """The count and the time in words: `compiled 2 of at most 4 programs in 3.1 s`.

    `most`: the most programs that there could be.
    """
    count = f"{programs}" if most is None else f"{programs} of at most {most}"
    noun = "program" if (programs if most is None else most) == 1 else "programs"
    return f"compiled {count} {noun} in {seconds:.1f} s"
