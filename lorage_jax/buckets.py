"""Static shapes: lengths are rounded up to a few sizes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMALLEST = 16


def bucket(length: int, smallest: int = SMALLEST, per_octave: int = 2) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, ... that is >= `length`; at most a third is padding.

    There are `per_octave` sizes per doubling; more of them mean less padding, but more programs.
    """
    size = smallest
    while size * 2 < length:
        size *= 2
    steps = range(per_octave, 2 * per_octave + 1)
    return next(n for k in steps if (n := -(-size * k // per_octave)) >= length)


def bucket_sizes(smallest: int, largest: int, per_octave: int = 2) -> list[int]:
    """All values of `min(bucket(length, smallest, per_octave), largest)`, in order."""
    found = [smallest]
    while found[-1] < largest:
        found.append(bucket(found[-1] + 1, smallest, per_octave))
    return sorted({min(size, largest) for size in found})


def left_pad(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads token rows on the left with zeros to [B, length] int32; also returns the mask."""
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if row:
            tokens[i, length - len(row) :] = row
            mask[i, length - len(row) :] = True
    return tokens, mask
