"""Writes a GGUF file with one tensor in memory at a time, through the `gguf` package."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lorage_jax.errors import ConfigError, OutputError, WeightsError
from lorage_jax.fields import home_path
from lorage_jax.files.gguf import MAGIC, library
from lorage_jax.files.outputs import check_file, new_file

# Types of weights -> the same in llama.cpp's enumeration of file types.
TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q5_1": "MOSTLY_Q5_1",
    "q5_0": "MOSTLY_Q5_0",
    "q4_1": "MOSTLY_Q4_1",
    "q4_0": "MOSTLY_Q4_0",
}


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
        type: how it is stored: a key of TYPES, or any of the format's if `stored`.
        make: returns its values, or its bytes if `stored`.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    make: Callable[[], np.ndarray]
    stored: bool = False


def check_type(type: str) -> str:
    """Returns `type`. Raises ConfigError unless it is a key of TYPES."""
    if type not in TYPES:
        raise ConfigError(f"the type of weights is {type!r}; expected one of {', '.join(TYPES)}.")
    return type


def fitting_type(type: str, shape: tuple[int, ...]) -> str:
    """The type in which a tensor is stored: f32 for vectors, f16 for rows that blocks do not fit.

    `type`: the type that was asked for.
    """
    if len(shape) < 2:
        return "f32"
    gguf = library()
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type.upper()]]
    return "f16" if shape[-1] % block else type


def check_place(path: str | Path, overwrite: bool, *sources: str | Path | None) -> None:
    """Raises OutputError unless a GGUF file may be written to `path`. Call it before long work.

    It must not be one of the `sources` nor lie in one, and replaces nothing but a GGUF file.
    """
    check_file(path, overwrite)
    path = home_path(path)
    for source in sources:
        if source is None:
            continue
        read, target = home_path(source).resolve(), path.resolve()
        if read == target or read in target.parents:
            where = "is" if read == target else "is inside"
            raise OutputError(f"{path} {where} {source}, which is read. Choose another place.")
    if path.exists():
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
        if begin and begin != MAGIC:
            raise OutputError(
                f"{path} is not a GGUF file, so it is not replaced. Move it away or choose another "
                "name."
            )


def write_gguf(
    path: str | Path,
    architecture: str,
    add_keys: Callable[[Any], None],
    entries: Sequence[Entry],
    overwrite: bool = False,
) -> None:
    """Writes one file, completely or not at all.

    `add_keys` gets the package's GGUFWriter. Raises OutputError, and WeightsError for a value that
    is too large for float16.
    """
    gguf = library()
    check_place(path, overwrite)
    kinds = [gguf.GGMLQuantizationType[entry.type.upper()] for entry in entries]
    with new_file(path, overwrite) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        add_keys(writer)
        for entry, kind in zip(entries, kinds, strict=True):
            shape = gguf.quant_shape_to_byte_shape(entry.shape, kind)
            size = int(np.prod(shape, dtype=np.int64))
            writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), size, raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for entry, kind in zip(entries, kinds, strict=True):
                writer.write_tensor_data(_stored(entry, kind))
            writer.flush()
        except OSError as error:
            if error.errno is None:  # numpy could not write all bytes, and does not say why
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        finally:
            writer.close()


def _stored(entry: Entry, kind: Any) -> np.ndarray:
    """The bytes of a tensor."""
    if entry.stored:
        return np.ascontiguousarray(entry.make()).view(np.uint8)
    values = np.ascontiguousarray(entry.make(), np.float32)
    if values.shape != entry.shape:
        raise WeightsError(f"{entry.name}: expected shape {entry.shape}, got {values.shape}.")
    with np.errstate(over="ignore"):
        stored = library().quants.quantize(values, kind)
    if entry.type == "f16" and np.any(np.isinf(stored) & np.isfinite(values)):
        raise WeightsError(f"{entry.name}: a value does not fit float16. Choose bf16 or f32.")
    return stored.view(np.uint8)
