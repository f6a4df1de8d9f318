"""Packing: several texts share a row, one after the other, so that a batch has little padding.

All rows hold the same number of texts and roughly as many tokens. `text` says which text each slot
belongs to, and positions count within it. Row lengths are rounded up to a few buckets, because
every length needs its own compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorage_jax.buckets import bucket

PER_OCTAVE = 4  # row lengths per factor of 2: at most a fifth is padding, a tenth on average


def balanced(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Assigns texts to rows: as many to each, with roughly equal sums of lengths.

    Longest first, each text goes to the row with the fewest tokens among those that are not full.

    Returns the indices of each row's texts.
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
    """Packs `texts` into `rows` rows of equal length T, padded with the token id `pad`.

    T is a bucket (`buckets.bucket`) from `smallest` to `largest` slots.

    Returns:
        The indices of each row's texts, [rows, texts per row], and the arrays `tokens`, `mask`,
        `text` and `positions` of `data.batches.Rows`, each [rows, T].
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
