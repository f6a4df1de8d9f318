"""Fingerprints of weights, by which a card names the edge and the generator it belongs to.

A fingerprint is a sha256 over (tensor name, dtype, shape, sha256 of the bytes), sorted by name. The
dtype matters; the tensors' order, their spread over files and `__metadata__` do not. It covers only
weights, not the fields of config.json that also shape the arithmetic (rope, norms). A tied head
that is written a second time counts as one more tensor.
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
    """The fingerprint of a Hugging Face folder's weights: `sha256:` and 64 hex digits.

    Reads every byte once per process, at about 1 GB/s per core. Raises WeightsError like
    `Checkpoint.open`.
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
    """The fingerprint of numpy or jax arrays, equal to that of a folder that holds just these.

    On a pod, the arrays must be whole on this process. Raises WeightsError for a dtype that
    safetensors lacks.
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
        # hashlib releases the GIL, so the threads hash in parallel.
        return json.dumps([name, dtype, list(shape), hashlib.sha256(data().data).hexdigest()])

    ordered = sorted(tensors, key=lambda tensor: tensor[0])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lines = list(pool.map(line, ordered))
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()
