"""Fingerprints of weights, by which a card names the edge and the generator it belongs to.

A fingerprint is a sha256 over (tensor name, dtype, shape, sha256 of the bytes), sorted by name. The
dtype matters; the tensors' order, their spread over files and `__metadata__` do not. It covers only
weights, not the fields of config.json that also shape the arithmetic (rope, norms). A tied head
that is written a second time counts as one more tensor. A GGUF file has the types, names and bytes
of its own, so its fingerprint differs from that of the folder that it was made of.
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
from lorage_jax.files.gguf import GgufFile, is_gguf, open_gguf_file
from lorage_jax.files.header import NAMES
from lorage_jax.files.safetensors import Checkpoint

# Said where a model has another fingerprint than expected.
TWO_MODELS = "A GGUF file and the Hugging Face folder that it was made of are two models."

# (path, mtime_ns, size, inode) of every file -> fingerprint. A changed file is a new key.
_known: dict[tuple[tuple[str, int, int, int], ...], str] = {}


def fingerprint(folder: str | Path) -> str:
    """The fingerprint of a folder's or GGUF file's weights: `sha256:` and 64 hex digits.

    Reads every byte once per process, at about 1 GB/s per core. Raises WeightsError like
    `Checkpoint.open` and `open_gguf_file`.
    """
    if is_gguf(folder):
        file = open_gguf_file(folder)
        kinds = {name: tensor.type for name, tensor in file.tensors.items()}
        return _of_files([file.path], kinds, file)
    checkpoint = Checkpoint.open(folder)
    kinds = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    return _of_files(checkpoint.files(), kinds, checkpoint)


def short(fingerprint: str) -> str:
    """A fingerprint's first digits, for messages; that of an untrained generator is empty."""
    return fingerprint[:19] + "..." if len(fingerprint) > 22 else fingerprint or "(untrained)"


def _of_files(files: list[Path], kinds: dict[str, str], opened: Checkpoint | GgufFile) -> str:
    """The fingerprint of the tensors of opened files; `kinds`: how each is stored."""
    key = tuple(_identity(file) for file in files)
    if key not in _known:
        _known[key] = _combine(
            (name, kind, opened.tensors[name].shape, lambda name=name: opened.raw(name))
            for name, kind in kinds.items()
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
