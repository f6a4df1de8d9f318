"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from lorage_jax.errors import ConfigError


def parse_steps(text: str) -> tuple[int, int]:
    """Parses `START:STOP`, the first and the last step. Raises ConfigError for anything else."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(
            f"--profile is {text!r}; expected START:STOP, the first and last step, as in 20:24."
        )
    return int(first), int(last)


class Profile:
    """Traces `steps` (first, last; None for none) into `folder`, even if one of them fails."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder, self.steps, self._running = folder, steps, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Before `step` starts; a run that is resumed between the two begins here."""
        if self.steps and not self._running and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """After `step` was started; `result` is what must be there before the trace ends."""
        if self._running and self.steps and step == self.steps[1]:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._running = False
