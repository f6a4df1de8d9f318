"""Safetensors by byte ranges: list a folder's tensors, read parts of them, rewrite a file.

Parts are views of a mapped file, so that only the bytes asked for are read. Nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple, Protocol

import numpy as np
import safetensors
import safetensors.numpy

from lorage_jax.chips import MIB
from lorage_jax.errors import DENIED, ConfigError, OutputError, WeightsError, bullets, denied
from lorage_jax.files.header import DTYPES, NAMES, Header, Tensor, all_strings, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
CHUNK = 16 * MIB  # bytes copied or cast at a time
UNPICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")

Index = tuple[slice | int | EllipsisType, ...] | EllipsisType | slice | int


class Tensors(Protocol):
    """The tensors of a model by name, of which parts are read: a `Checkpoint` or what acts as one.

    `dtype` is that of what is read, as safetensors spells it, e.g. `BF16`.
    """

    def __contains__(self, name: str) -> bool: ...
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def read(self, name: str, index: Index = ...) -> np.ndarray: ...


def main_dtype(tensors: Tensors) -> str:
    """The dtype of the largest tensor, as safetensors spells it."""
    return tensors.dtype(max(tensors.names(), key=lambda name: math.prod(tensors.shape(name))))


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a folder or file, made by `open` or `open_file`."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]  # of the first file
    _maps: dict[Path, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """A Hugging Face folder: `model.safetensors`, or shards with an index.

        If both exist, the single file is used, as in transformers. Raises WeightsError, which lists
        all problems.
        """
        folder, problems = Path(folder), []
        if not folder.is_dir():
            raise WeightsError(f"{folder} is not a folder. Expected a Hugging Face model folder.")
        if not (folder / "config.json").is_file():
            problems.append("config.json is missing")
        if os.path.lexists(folder / SINGLE):
            files, weight_map = [SINGLE], None
        elif os.path.lexists(folder / INDEX):
            weight_map = _read_index(folder, problems)
            files = sorted(set(weight_map.values()))
        else:
            files, weight_map = [], None
            problems.append(_what_else(folder))
        return cls._of_files(folder, [folder / name for name in files], weight_map, problems)

    @classmethod
    def open_file(cls, path: str | Path) -> Checkpoint:
        """One safetensors file. Raises WeightsError, which lists all problems."""
        return cls._of_files(Path(path), [Path(path)], None, [])

    @classmethod
    def _of_files(cls, path, files, weight_map, problems) -> Checkpoint:
        tensors: dict[str, Tensor] = {}
        metadata, faulty = {}, set()
        for number, file in enumerate(files):
            header, found = read_header(file)
            problems += [f"{file.name}: {problem}" for problem in found]
            if header is None or found:
                faulty.add(file.name)
            if header is None:
                continue
            if number == 0:
                metadata = header.metadata or {}
            for name, tensor in header.tensors.items():
                if name in tensors:
                    problems.append(
                        f"{name} is a duplicate tensor: in {tensors[name].file.name} and in "
                        f"{file.name}"
                    )
                tensors[name] = tensor
        for name, shard in sorted((weight_map or {}).items()):
            if shard not in faulty and (name not in tensors or tensors[name].file.name != shard):
                problems.append(f"{name} is in the index but not in {shard}")
        if problems:
            raise WeightsError(_message(path, problems))
        return cls(path, tensors, metadata)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """The dtype as the file spells it, e.g. `BF16`."""
        return self.tensors[name].dtype

    def files(self) -> list[Path]:
        """The safetensors files, sorted."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes as uint8, memory-mapped: pages are read when they are touched."""
        tensor = self.tensors[name]
        if tensor.file not in self._maps:  # one map per file: each holds a file descriptor
            self._maps[tensor.file] = _map(tensor.file)
        if self._maps[tensor.file].size < tensor.stop:
            raise WeightsError(f"{tensor.file} became shorter since it was opened; open it again.")
        return self._maps[tensor.file][tensor.start : tensor.stop]

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """The part `index` (numpy basic indexing) of a tensor, in the file's dtype.

        A read-only view of the file: only the bytes of the part are read, when they are used.
        """
        tensor = self.tensors[name]
        return self.raw(name).view(DTYPES[tensor.dtype]).reshape(tensor.shape)[index]


def used_files(folder: Path) -> list[Path]:
    """The files that `Checkpoint.open` reads, or all of a folder in which it finds none."""
    if os.path.lexists(folder / SINGLE):
        return [folder / SINGLE]
    if os.path.lexists(folder / INDEX):
        return [folder / name for name in sorted(set(_read_index(folder, []).values()))]
    return sorted(folder.glob("*.safetensors"))


def _read_index(folder: Path, problems: list[str]) -> dict[str, str]:
    """The index's weight map: tensor name -> file name. Appends to `problems`."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except PermissionError:
        problems.append(denied(folder / INDEX))
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        problems.append(f"{INDEX} is corrupt: expected JSON with weight_map ({reason})")
        return {}
    if not isinstance(weight_map, dict) or not weight_map or not all_strings(weight_map):
        problems.append(f"{INDEX} is corrupt: weight_map is not tensor name -> file name")
        return {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            problems.append(f"{INDEX} names {file!r}; expected a .safetensors file of this folder")
    return {name: file for name, file in weight_map.items() if Path(file).name == file}


def _what_else(folder: Path) -> str:
    """The problem of a folder without weights, with advice that fits the files in it."""
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = sorted(path.name for kind in UNPICKLED for path in folder.glob(kind))
    problem = f"no {SINGLE} and no {INDEX}"
    if loose:
        problem += f"; {', '.join(loose[:5])} cannot be used without the index"
    if pickles:
        problem += (
            f"; {', '.join(pickles[:5])} is a pickle, which is never opened (it can run code). "
            "Convert it with transformers: save_pretrained(folder, safe_serialization=True)"
        )
    return problem


def _message(path: Path, problems: list[str]) -> str:
    count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
    said = f"{path}: the weights cannot be used ({count}):\n{bullets(problems)}"
    if all(DENIED in one for one in problems):  # the files may be whole
        return said
    return f"{said}\nFetch or convert them again."


def _map(file: Path) -> np.ndarray:
    return np.asarray(np.memmap(file, np.uint8, mode="r"))


def rewrite(
    src_file: Path,
    dst_file: Path,
    replace: Mapping[str, Callable[[], np.ndarray]],
    dtype: str | None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Streams one file into a new one, with about one tensor in memory at a time.

    The tensors' order and `__metadata__` stay, and so do the header's bytes if no dtype and no name
    changes.

    Args:
        src_file: a safetensors file.
        dst_file: the file to write; it must not exist.
        replace: new values by tensor name, of the same shape; they are cast to the tensor's dtype.
            All other tensors are copied bit for bit.
        dtype: a key of FLOATS, to which all float tensors are cast; None keeps their dtypes.
        names: new names of tensors, by their names in `src_file`.

    Raises WeightsError (source, names, shapes, overflow) and ConfigError (dtype).
    """
    if dtype is not None and dtype not in FLOATS:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(FLOATS)}.")
    source = Checkpoint.open_file(src_file)
    header, problems = read_header(Path(src_file))
    if header is None:
        raise WeightsError(_message(Path(src_file), problems))
    unknown = sorted(set(replace) - set(source.tensors))
    if unknown:
        raise WeightsError(f"{src_file} holds no tensor {', '.join(unknown)} to replace.")
    targets = {
        name: FLOATS[dtype] if dtype and tensor.dtype in FLOATS.values() else tensor.dtype
        for name, tensor in source.tensors.items()
    }
    names = {name: new for name, new in (names or {}).items() if name in targets}
    cast = any(targets[name] != tensor.dtype for name, tensor in source.tensors.items())
    with Path(dst_file).open("xb") as out:
        try:
            out.write(_new_header(header, targets, names) if cast or names else header.raw)
            for name, target in targets.items():
                if name in replace:
                    values = np.asarray(replace[name]())
                    if values.shape != source.shape(name):
                        raise WeightsError(
                            f"{name}: expected shape {source.shape(name)}, got {values.shape}."
                        )
                else:
                    values = source.read(name)
                _write(out, name, values, DTYPES[target])
        except BaseException:
            Path(dst_file).unlink(missing_ok=True)
            raise


def _new_header(header: Header, targets: dict[str, str], names: Mapping[str, str]) -> bytes:
    content: dict[str, Any] = {}
    if header.metadata is not None:
        content["__metadata__"] = header.metadata
    offset = 0
    for name, tensor in header.tensors.items():
        stop = offset + math.prod(tensor.shape) * DTYPES[targets[name]].itemsize
        entry = {"dtype": targets[name], "shape": list(tensor.shape)}
        content[names.get(name, name)] = entry | {"data_offsets": [offset, stop]}
        offset = stop
    return _spelled(content)


def _spelled(content: dict[str, Any]) -> bytes:
    """The bytes of a header."""
    raw = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # so that the data start aligned
    return len(raw).to_bytes(8, "little") + raw


def _write(out: Any, name: str, values: np.ndarray, dtype: np.dtype) -> None:
    """Casts and writes in chunks. Raises WeightsError if a finite number overflows the dtype."""
    flat = np.ascontiguousarray(values).reshape(-1)  # a strided view would be written wrong
    step = max(1, CHUNK // flat.itemsize)
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        if part.dtype != dtype:
            with np.errstate(over="ignore", invalid="ignore"):
                cast = part.astype(dtype)
                lost = np.any(np.isfinite(part) & ~np.isfinite(cast))
            if lost:
                raise WeightsError(f"{name}: a value does not fit {dtype}. Choose a wider dtype.")
            part = cast
        out.write(part.view(np.uint8).data)


def write_streamed(path: Path, tensors: Sequence[Streamed]) -> None:
    """Writes a file with one tensor in memory at a time, inside a `new_folder`.

    Raises WeightsError for a value that a dtype does not hold.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for one in tensors:
        stop = offset + math.prod(one.shape) * DTYPES[one.dtype].itemsize
        entry = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [offset, stop]}
        content[one.name], offset = entry, stop
    with path.open("xb") as out:
        out.write(_spelled(content))
        for one in tensors:
            values = np.asarray(one.make())
            if values.shape != one.shape:
                raise WeightsError(f"{one.name}: expected shape {one.shape}, got {values.shape}.")
            _write(out, one.name, values, DTYPES[one.dtype])


class Streamed(NamedTuple):
    """A tensor to write: `dtype` as files spell it, `make` returns its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def save(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes numpy or jax arrays as one safetensors file, inside a `new_folder`.

    Raises WeightsError for a dtype that safetensors lacks, and OutputError.
    """
    path = Path(path)
    # order="C" and not ascontiguousarray, which turns a scalar into a vector. Without either, a
    # transposed view is written wrong without an error.
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    for name, array in arrays.items():
        if array.dtype not in NAMES:
            raise WeightsError(f"{name}: dtype {array.dtype} cannot be saved as safetensors.")
    try:
        path.touch()  # the library's file is unreadable for others, so keep the umask's mode
        mode = path.stat().st_mode & 0o777
        safetensors.numpy.save_file(arrays, path, dict(metadata) if metadata else None)
        path.chmod(mode)
    except (safetensors.SafetensorError, OSError) as error:
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()
        raise OutputError(f"Cannot write {path}: {error}. Free space or choose another.") from error


def read_tensors(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file, in memory.

    With `shapes`, the file must hold exactly the named tensors. Raises WeightsError, which lists
    all problems.
    """
    checkpoint = Checkpoint.open_file(path)
    found = {name: np.array(checkpoint.read(name)) for name in checkpoint.names()}
    if shapes is None:
        return found
    problems = [f"{n} is missing; expected {s}" for n, s in shapes.items() if n not in found]
    problems += [f"{n} is not known" for n in found if n not in shapes]
    problems += [
        f"{n} has shape {found[n].shape}; expected {shape}"
        for n, shape in shapes.items()
        if n in found and found[n].shape != shape
    ]
    if problems:
        raise WeightsError(f"{path}:\n{bullets(problems, len(problems))}")
    return found
