"""Static shapes: lengths are rounded up to few sizes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMALLEST = 16


def bucket(length: int, smallest: int = SMALLEST) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, ... that holds `length`: at most a third is padding.

    Two sizes an octave: a longer ladder pads less and compiles more.
    """
    size = smallest
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def left_pad(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token rows as [B, length] int32 with zeros in front, and the mask of real tokens."""
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if row:
            tokens[i, length - len(row) :] = row
            mask[i, length - len(row) :] = True
    return tokens, mask
