"""Two libraries side by side: the same work, in turn, in one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorage_jax.bench.peers import threads
from lorage_jax.errors import joined
from lorage_jax.provenance import machine

QUIET = 0.1  # the share of the CPU that others may use
NOISY = "other processes used {:.0%} of the CPU meanwhile: measure again on a quiet machine."

PEER = "transformers"  # the key of the peer's figures, whichever library it is


@dataclass(frozen=True)
class Side:
    """One library's part.

    Attributes:
        library: its name, and what it was asked to do.
        seconds: of every repetition.
        facts: further figures of this side.
    """

    library: str
    seconds: Sequence[float]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The work of one repetition, which both sides do.

    Attributes:
        unit: the plural of what is counted, such as tokens.
        count: how many of them.
        macs: multiply-accumulates of its matrix products, without padding or recomputation.
    """

    unit: str
    count: int
    macs: int


def compared(
    ours: Side,
    theirs: Side | None,
    work: Work,
    rate: float,
    *,
    missing: str | None = None,
    others: float | None = None,
) -> dict[str, Any]:
    """The result of a comparison, as JSON values.

    It has the figures of `lorage` and of the peer (None without one), `ratio`, the peer's median
    time over ours (above 1: we are faster), and the share of the machine's matmul rate.

    Args:
        rate: FLOP/s of the devices that take part, from `matmul_rate`.
        missing: a sentence that says why there is no peer.
        others: share of the CPU that other processes used meanwhile (`Bystanders`).
    """
    sides = {"lorage": ours} | ({} if theirs is None else {PEER: theirs})
    figures = {name: _figures(side, work, rate) for name, side in sides.items()}
    ratio = None
    if theirs is not None:
        ratio = figures[PEER]["seconds"] / figures["lorage"]["seconds"]
    note = joined(missing, NOISY.format(others) if others is not None and others > QUIET else None)
    return {
        "lorage": figures["lorage"],
        PEER: figures.get(PEER),
        "ratio": ratio,
        "matmul_share": figures["lorage"]["matmul_share"],
        "matmul_flops_per_second": rate,
        "macs": work.macs,
        "largest_spread_within_one": max(max(s.seconds) / min(s.seconds) for s in sides.values()),
        "cpu_share_of_others": others,
        "machine": machine() | {"threads": threads()},
        **({} if note is None else {"note": note}),
    }


def _figures(side: Side, work: Work, rate: float) -> dict[str, Any]:
    seconds = statistics.median(side.seconds)
    return {
        "library": side.library,
        "seconds": seconds,
        f"{work.unit}_per_second": work.count / seconds,
        "matmul_share": 2 * work.macs / seconds / rate,
        **side.facts,
    }
