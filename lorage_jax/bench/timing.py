"""Wall time on noisy machines, where only ratios within a run are meaningful."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


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
