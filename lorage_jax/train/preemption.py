"""SIGTERM, with which schedulers announce that they take a machine away, becomes a last checkpoint.

A process alone notes the signal and stops after its step. Several agree on the step: JAX's own
handler tells the other processes, and all of them stop at the first step that none has passed.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Between enter and exit, SIGTERM only makes `reached` true."""

    def __init__(self) -> None:
        self._noted = False
        self._before: Any = None

    def __enter__(self) -> Preemption:
        alone = not jax.distributed.is_initialized()
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """True if the run must save and stop after `step`. All processes must ask at every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted

    def _note(self, *_: Any) -> None:
        self._noted = True
