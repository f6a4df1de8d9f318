"""Wall time on noisy machines, where only ratios within a run are meaningful."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

STAT = Path("/proc/stat")


class Bystanders:
    """Measures how much of the CPU other processes use while the block runs.

    Attributes:
        share: of all cores, from 0 to 1; None where there is no /proc.
    """

    share: float | None = None

    def __enter__(self) -> Bystanders:
        self._began, self._before = time.perf_counter(), _others()
        return self

    def __exit__(self, *_: Any) -> None:
        now = _others()
        if now is not None and self._before is not None:
            cores = os.cpu_count() or 1
            used = (now - self._before) / (time.perf_counter() - self._began) / cores
            self.share = min(max(used, 0.0), 1.0)


def _others() -> float | None:
    """Seconds that the cores have worked for other processes, in all."""
    try:
        ticks = [int(word) for word in STAT.read_text("utf-8").split("\n")[0].split()[1:]]
    except (OSError, ValueError):
        return None
    user, nice, system, _, _, interrupts, soft = ticks[:7]
    own = time.process_time()
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK") - own


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one call in seconds, until its arrays are ready."""
    began = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - began


def in_turn(actions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of every action, by name.

    Each action is first called once to compile, which is not timed. Then they take turns, in
    reverse order every other time, so that a drift of the machine affects all of them alike.
    """
    for action in actions.values():
        seconds(action)
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats):
        for name in actions if number % 2 == 0 else reversed(list(actions)):
            times[name].append(seconds(actions[name]))
    return times


def largest_spread(times: Mapping[str, list[float]]) -> float:
    """The largest ratio of the slowest to the fastest call of one action."""
    return max(max(each) / min(each) for each in times.values())
