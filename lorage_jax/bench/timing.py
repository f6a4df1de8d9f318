"""Wall time on noisy machines: what counts are ratios within a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one call, its arrays finished."""
    began = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - began


def in_turn(actions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of every action.

    All are called once before, which compiles and is not counted. Then they take turns, the order
    reversed every other time, so that drift of the machine hits all alike.
    """
    for action in actions.values():
        seconds(action)
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats):
        for name in actions if number % 2 == 0 else reversed(list(actions)):
            times[name].append(seconds(actions[name]))
    return times


def largest_spread(times: Mapping[str, list[float]]) -> float:
    """Slowest over fastest call of one action, the worst of all actions."""
    return max(max(each) / min(each) for each in times.values())
