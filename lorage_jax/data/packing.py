"""Texts one behind the other in a few rows, so that little of a batch is padding.

Every row holds as many texts, about as many tokens; which slots belong to which text is told in
`text`, and positions count within it. A program is compiled for a length, of which there are few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorage_jax.buckets import bucket

PER_OCTAVE = 4  # lengths of rows: at most a fifth is padding, a tenth on average


def balanced(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Which of the texts stand in which row: as many in each, sums of lengths about alike.

    The longest first, each into the row that has the fewest tokens yet and room for a text.
    """
    each, placed, sums = len(lengths) // rows, [[] for _ in range(rows)], [0] * rows
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = min((r for r in range(rows) if len(placed[r]) < each), key=sums.__getitem__)
        placed[row].append(text)
        sums[row] += lengths[text]
    return placed


def pack(
    texts: Sequence[Sequence[int]], rows: int, smallest: int, largest: int, pad: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(which text stands where [rows, texts of a row], arrays [rows, T] of token ids).

    The arrays: tokens; mask, of real ones; text, which of the row's; positions in it. T: see
    `buckets.bucket`, from `smallest` to `largest`.
    """
    placed = balanced([len(text) for text in texts], rows)
    longest = max(sum(len(texts[i]) for i in row) for row in placed)
    shape = (rows, min(bucket(longest, smallest, PER_OCTAVE), largest))
    out = {
        "tokens": np.full(shape, pad, np.int32),
        "mask": np.zeros(shape, bool),
        "text": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    for row, members in enumerate(placed):
        begin = 0
        for number, i in enumerate(members):
            place = slice(begin, begin + len(texts[i]))
            out["tokens"][row, place], out["mask"][row, place] = texts[i], True
            out["text"][row, place] = number
            out["positions"][row, place] = np.arange(len(texts[i]))
            begin += len(texts[i])
    return np.array(placed), out
