"""The header of a safetensors file, and a list of everything that is wrong with the file.

The header (8-byte length, JSON) is parsed here and not by the safetensors library, so that all
problems are reported at once, and because hashing and bit-exact copies need the byte offsets,
which the library does not give. The checks are the library's own: tensors fill the file without
holes or overlaps.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lorage_jax.errors import DENIED

# Quantized dtypes (F8, F4, ...) are left out: they mean nothing without their scales.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the safetensors library's limit


@dataclass(frozen=True)
class Tensor:
    """The place of one tensor: `file`, dtype as the file spells it, absolute byte range."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The header of one file: its raw bytes, `__metadata__`, and the tensors in file order."""

    raw: bytes  # length prefix and padding included
    metadata: dict[str, str] | None
    tensors: dict[str, Tensor]


def read_header(file: Path) -> tuple[Header | None, list[str]]:
    """The header of one file, or None if it is unusable, and a list of the file's problems."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == b"version ":
                return None, ["is a Git LFS pointer, not the weights; run `git lfs pull`"]
            if len(prefix) < 8:
                return None, [f"truncated: {size} bytes cannot hold a header"]
            if length > MAX_HEADER:
                return None, [f"corrupt: the header claims {length} bytes"]
            if 8 + length > size:
                return None, [f"truncated: the header needs {8 + length} bytes, {size} are there"]
            raw = stream.read(length)
    except FileNotFoundError:
        return None, ["file is missing"]
    except PermissionError:
        return None, [f"cannot be read: {DENIED}"]
    except OSError as error:
        return None, [f"cannot be read: {error.strerror or error}"]
    return _parse_header(file, size, prefix + raw)


def _parse_header(file: Path, size: int, raw: bytes) -> tuple[Header | None, list[str]]:
    problems: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            doubles = sorted(name for name, count in counts.items() if count > 1)
            problems.append(f"duplicate tensor in the header: {', '.join(doubles)}")
        return seen

    try:
        content = json.loads(raw[8:].decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None, ["corrupt: the header is not JSON"]
    if not isinstance(content, dict):
        return None, ["corrupt: the header is not a JSON object"]
    metadata = content.pop("__metadata__", None)
    if metadata is not None and not all_strings(metadata):
        problems.append("corrupt: __metadata__ is not an object of strings")
        metadata = None
    tensors = {}
    for name, entry in content.items():
        problem = _entry_problem(entry)
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            start, stop = (len(raw) + offset for offset in entry["data_offsets"])
            tensors[name] = Tensor(file, entry["dtype"], tuple(entry["shape"]), start, stop)
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    if not problems:
        problems += _layout_problems(tensors, len(raw), size)
    return Header(raw, metadata, tensors), problems


def all_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _entry_problem(entry: Any) -> str | None:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        return "corrupt: expected dtype, shape and two data_offsets"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"unsupported dtype {dtype}; expected one of {', '.join(DTYPES)}"
    numbers = [*shape, start, stop] if isinstance(shape, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        return f"corrupt: shape {shape} or data_offsets [{start}, {stop}]"
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if stop - start != expected:
        return f"corrupt: {dtype} {shape} is {expected} bytes, data_offsets hold {stop - start}"
    return None


def _layout_problems(tensors: dict[str, Tensor], header: int, size: int) -> list[str]:
    """Problems of a file whose tensors do not fill it from the header to its end."""
    problems, end = [], header
    for name, tensor in tensors.items():
        if tensor.start > end:
            problems.append(f"{name}: {tensor.start - end} bytes before it belong to no tensor")
        if tensor.start < end:
            problems.append(f"{name} overlaps the tensor before it by {end - tensor.start} bytes")
        end = max(end, tensor.stop)
    if end > size:
        past = [name for name, tensor in tensors.items() if tensor.stop > size]
        problems.append(
            f"truncated: needs {end} bytes, has {size}; {len(past)} tensors are cut off, "
            f"the first is {past[0]}"
        )
    if end < size:
        problems.append(f"corrupt: {size - end} bytes after the last tensor")
    return problems
