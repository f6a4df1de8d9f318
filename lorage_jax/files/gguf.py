"""GGUF files: keys and tensors of a mapped file, dequantised a block of rows at a time.

The header is parsed here and not by the gguf package, whose reader makes several arrays of every
token (10 s for a vocabulary of 262,144) and does not say what is cut off. Types and the arithmetic
of dequantising are the package's. Layout: magic, version, counts, keys, tensor infos, data.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lorage_jax.chips import MIB
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import home_path

MAGIC, SUFFIX = b"GGUF", ".gguf"
VERSIONS = (2, 3)
BLOCK = 16 * MIB  # bytes of float32 values that are dequantised at a time
# Types of values in keys -> their format in `struct`; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
SCALARS |= {12: "d"}
STRING, ARRAY = 8, 9
# Raised for bytes that are no header.
DAMAGE = (
    *(struct.error, ValueError, TypeError, LookupError, ArithmeticError),
    *(MemoryError, RecursionError),
)
LARGEST_TYPE = 1023  # forks of llama.cpp number their quantisations up to some hundred
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


@dataclass(frozen=True)
class GgufTensor:
    """The place of one tensor: type, shape in numpy's order, absolute byte range."""

    type: str  # F32, Q8_0, ...
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class GgufFile:
    """An opened file, made by `open_gguf_file`.

    Attributes:
        keys: name -> number, text, boolean, or list of these.
        types: name -> the format's number for the type of a key, and for that of a list's values.
        tensors: by name, in the file's order.
        data: the mapped file as uint8.
    """

    path: Path
    keys: Mapping[str, Any]
    types: Mapping[str, tuple[int, int | None]]
    tensors: Mapping[str, GgufTensor]
    data: np.ndarray

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes as uint8, mapped: pages are read when they are touched."""
        return self.data[self.tensors[name].start : self.tensors[name].stop]

    def dtype(self, name: str) -> str:
        """The dtype of the values that `rows` returns, as safetensors spells it."""
        kind = self.tensors[name].type
        return kind if kind in FLOATS else "F32"

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor: a view of the file, or dequantised to float32."""
        tensor = self.tensors[name]
        stored = self.raw(name).reshape(tensor.shape[0], -1)[start:stop]
        shape = (len(stored), *tensor.shape[1:])
        if tensor.type in FLOATS:
            return stored.reshape(-1).view(FLOATS[tensor.type]).reshape(shape)
        gguf = library()
        kind, out = gguf.GGMLQuantizationType[tensor.type], np.empty(shape, np.float32)
        if len(shape) < 2:  # a vector is one row of blocks
            raise WeightsError(f"{self.path}: {name} is a vector in {tensor.type}; expected F32.")
        step = max(1, BLOCK // (4 * math.prod(shape[1:])))
        for begin in range(0, len(stored), step):
            part = gguf.dequantize(stored[begin : begin + step], kind)
            out[begin : begin + step] = part.reshape(-1, *shape[1:])
        return out


def library() -> Any:
    """The `gguf` package. Raises ConfigError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "GGUF files need the gguf package. Install it: pip install 'lorage_jax[gguf]'."
        ) from None
    return gguf


def is_gguf(path: str | Path) -> bool:
    """True for a path that is a GGUF file, by its content or its name."""
    path = Path(path)
    if path.is_dir():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_gguf_file(path: str | Path) -> GgufFile:
    """Opens a file and checks that all of its tensors are there.

    Raises WeightsError for one that is missing, cut off, or no GGUF, and ConfigError without the
    gguf package.
    """
    path = home_path(path)
    library()
    try:
        stat = path.stat()
        if not stat.st_size:
            raise WeightsError(f"{path} is empty; expected a GGUF file.")
        return _open(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist; expected a GGUF file.") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from None


@functools.lru_cache(2)  # a command opens the same file for several parts
def _open(path: Path, modified: int, size: int) -> GgufFile:
    data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    header = _Header(data)
    magic = bytes(data[: len(MAGIC)])
    if magic != MAGIC:
        raise WeightsError(f"{path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}.")
    try:
        keys, infos = header.read()
        _refuse_types(path, {name: kind for name, (kind, _, _) in infos.items()})
        tensors = _placed(keys, infos, header.at)
    except UnknownVersion as error:
        raise WeightsError(f"{path} has version {error} of GGUF; expected 2 or 3.") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} is cut off or damaged: its header cannot be read to its end ({reason}). Fetch "
            "the file again."
        ) from None
    end = max((tensor.stop for tensor in tensors.values()), default=0)
    if end > size:
        lost = [name for name, tensor in tensors.items() if tensor.stop > size]
        raise WeightsError(
            f"{path} is cut off: it has {size} bytes and needs {end}; {len(lost)} of "
            f"{len(tensors)} tensors are not all there, the first is {lost[0]}. Fetch the file "
            "again."
        )
    return GgufFile(path, keys, header.types, tensors, data)


class UnknownVersion(ValueError):
    """A file of another version."""


class _Header:
    """Reads a header from its start; `at` is the next byte."""

    def __init__(self, data: np.ndarray):
        self.data = data.data
        self.types: dict[str, tuple[int, int | None]] = {}
        self.at = len(MAGIC)

    def read(self) -> tuple[dict[str, Any], dict[str, tuple[int, tuple[int, ...], int]]]:
        """Keys, and for each tensor the number of its type, its shape and its offset."""
        version = self.number("I")
        if version not in VERSIONS:
            raise UnknownVersion(version)
        tensors, keys = self.number("Q"), self.number("Q")
        found = {}
        for _ in range(keys):
            name = self.text()
            kind = self.number("I")
            self.types[name] = (kind, self.data[self.at] if kind == ARRAY else None)
            found[name] = self.value(kind)
        infos = {}
        for _ in range(tensors):
            name = self.text()
            dimensions = self.number("I")
            if dimensions > 4:
                raise ValueError(f"{name} has {dimensions} dimensions")
            shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
            stored = self.number("I")
            if stored > LARGEST_TYPE:
                raise ValueError(f"{name} has type {stored}")
            if name in infos:
                raise ValueError(f"{name} is in it twice")
            infos[name] = (stored, shape, self.number("Q"))
        return found, infos

    def number(self, format: str) -> Any:
        (value,) = struct.unpack_from(f"<{format}", self.data, self.at)
        self.at += struct.calcsize(format)
        return value

    def text(self) -> str:
        size = self.number("Q")
        if self.at + size > len(self.data):
            raise ValueError(f"a text of {size} bytes")
        value = bytes(self.data[self.at : self.at + size]).decode("utf-8", "replace")
        self.at += size
        return value

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            values = struct.unpack_from(f"<{count}{SCALARS[inner]}", self.data, self.at)
            self.at += count * struct.calcsize(SCALARS[inner])
            return list(values)
        return [self.value(inner) for _ in range(count)]


def _refuse_types(path: Path, numbers: Mapping[str, int]) -> None:
    """Raises WeightsError if a tensor's type cannot be read; `numbers` are those of the types."""
    for number in sorted(set(numbers.values())):
        if _readable(number):
            continue
        kinds = {kind.value: f"{number} ({kind.name})" for kind in library().GGMLQuantizationType}
        lost = [name for name, other in numbers.items() if other == number]
        others = f" and {len(lost) - 1} more are" if len(lost) > 1 else " is"
        raise WeightsError(
            f"{path}: {lost[0]}{others} in type {kinds.get(number, number)}, which the gguf "
            "package that is installed cannot dequantise. Take another quantisation of this "
            "model, such as Q8_0."
        )


@functools.cache
def _readable(number: int) -> bool:
    """True for the number of a type whose values `GgufFile.rows` can return."""
    gguf = library()
    try:
        kind = gguf.GGMLQuantizationType(number)
        if kind.name not in FLOATS:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError):
        return False
    return True


def _placed(
    keys: Mapping[str, Any], infos: Mapping[str, tuple[int, tuple[int, ...], int]], end: int
) -> dict[str, GgufTensor]:
    """The tensors, with byte ranges counted from the start of the file."""
    gguf = library()
    alignment = keys.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}, not a number of 1 or more")
    first = -(-end // alignment) * alignment
    found = {}
    for name, (number, shape, offset) in infos.items():
        kind = gguf.GGMLQuantizationType(number)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"{name} has shape {shape} in blocks of {block}")
        start = first + offset
        found[name] = GgufTensor(kind.name, shape, start, start + math.prod(shape) // block * size)
    return found
