"""How much of a merged update survives in the dtype of the file that it is exported to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.safetensors import FLOATS, Tensors

SAMPLED = 16  # one row in so many is looked at
LEAST = 0.9  # share of the update that must survive without a word
NARROW = {FLOATS[name]: DTYPES[name] for name in ("bfloat16", "float16")}


class UpdateKept:
    """Compares float32 tensors with their base's, and with what a narrower file holds of them.

    `1 - |applied - dW|^2 / |dW|^2`, as in `MergeReport.update_kept`, of a sample of rows.
    """

    def __init__(self, base: Tensors):
        self.base = base
        self.lost = self.intended = 0.0

    @property
    def share(self) -> float:
        """The share of the update that the file keeps; 1 if nothing was rounded."""
        return 1.0 if self.intended == 0 else 1.0 - self.lost / self.intended

    def watched(self, name: str, make: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        """Returns `make` for a tensor of the base; its values are counted when it is called."""
        narrow = NARROW.get(self.base.dtype(name))

        def watch() -> np.ndarray:
            values = np.asarray(make())
            if narrow is not None and values.dtype == np.float32:
                few = values[::SAMPLED].astype(np.float64)
                kept = values[::SAMPLED].astype(narrow).astype(np.float64)
                self.lost += float(np.sum((kept - few) ** 2))
                before = self.base.read(name)[::SAMPLED].astype(np.float64)
                self.intended += float(np.sum((few - before) ** 2))
            return values

        return watch

    def words(self) -> str | None:
        """Says that the file keeps less than LEAST of the update, and what to do; None if not."""
        if self.share >= LEAST:
            return None
        return (
            f"rounding to the dtype of the base's files keeps {max(self.share, 0.0):.0%} of the "
            "update of the weights. To keep it, export with dtype='float32', or load the edge in "
            "the dtype of its files before merging: merge rounds small updates stochastically."
        )
