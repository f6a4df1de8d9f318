"""A name for weights by their content: which edge and which generator a card belongs to.

sha256 over (tensor name, dtype, shape, sha256 of the bytes), sorted by name. How tensors are
spread over files, their order and `__metadata__` do not matter; dtype does. Only weights: the
fields of config.json that also shape the arithmetic (rope, norms) are not in it, and a tied head
written a second time counts as one more tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.errors import WeightsError
from lorage_jax.files.header import NAMES
from lorage_jax.files.safetensors import Checkpoint

# (path, mtime_ns, size, inode) of every file -> fingerprint. A changed file is a new key.
_known: dict[tuple[tuple[str, int, int, int], ...], str] = {}


def fingerprint(folder: str | Path) -> str:
    """`sha256:` + 64 hex digits of a Hugging Face folder's weights.

    Reads every byte once per process (about 1 GB/s and core). WeightsError as `Checkpoint.open`.
    """
    checkpoint = Checkpoint.open(folder)
    key = tuple(_identity(file) for file in checkpoint.files())
    if key not in _known:
        _known[key] = _combine(
            (name, tensor.dtype, tensor.shape, lambda name=name: checkpoint.raw(name))
            for name, tensor in checkpoint.tensors.items()
        )
    return _known[key]


def fingerprint_arrays(arrays: Mapping[str, Any]) -> str:
    """The same for numpy or jax arrays in memory: equal to a folder that holds just these.

    On a pod the arrays must be whole on this process. WeightsError: a dtype that no file holds.
    """
    whole = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    for name, array in whole.items():
        if array.dtype not in NAMES:
            raise WeightsError(f"{name}: dtype {array.dtype} has no fingerprint.")
    return _combine(
        (name, NAMES[array.dtype], array.shape, lambda array=array: array.reshape(-1).view("u1"))
        for name, array in whole.items()
    )


def _identity(file: Path) -> tuple[str, int, int, int]:
    stat = file.stat()
    return str(file.resolve()), stat.st_mtime_ns, stat.st_size, stat.st_ino


def _combine(
    tensors: Iterable[tuple[str, str, tuple[int, ...], Callable[[], np.ndarray]]],
) -> str:
    def line(tensor) -> str:
        name, dtype, shape, data = tensor
        # hashlib lets go of the GIL, so threads hash at the same time.
        return json.dumps([name, dtype, list(shape), hashlib.sha256(data().data).hexdigest()])

    ordered = sorted(tensors, key=lambda tensor: tensor[0])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lines = list(pool.map(line, ordered))
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()
