"""A GGUF file seen as a Hugging Face folder: config, tokenizer, and tensors under their names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.errors import LorageError, WeightsError
from lorage_jax.files.gguf import GgufFile, open_gguf_file
from lorage_jax.files.safetensors import Index
from lorage_jax.gguf.architectures import ARCHITECTURES, Architecture
from lorage_jax.gguf.config import read_fields
from lorage_jax.gguf.tensors import ROPE, from_llamacpp, is_offset, is_permuted, tensor_names
from lorage_jax.gguf.vocabulary import make_tokenizer
from lorage_jax.hf import tables
from lorage_jax.hf.family import get_family


@dataclass(frozen=True)
class GgufCheckpoint:
    """The tensors of a file under Hugging Face's names, read as from a `Checkpoint`.

    Attributes:
        names_there: name -> llama.cpp's name. A tensor that the model lacks keeps llama.cpp's.
    """

    file: GgufFile
    config: ModelConfig
    row: Architecture
    names_there: dict[str, str] = field(repr=False)

    def __contains__(self, name: str) -> bool:
        return name in self.names_there

    def names(self) -> list[str]:
        return list(self.names_there)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.tensors[self.names_there[name]].shape

    def dtype(self, name: str) -> str:
        """The dtype of what is read, as safetensors spells it: F32 for quantised tensors."""
        return "F32" if is_offset(self.config, name) else self.file.dtype(self.names_there[name])

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """The part `index` (numpy basic indexing) of a tensor, of which only its rows are read."""
        first, *others = index if isinstance(index, tuple) and index else (index or ...,)
        rows = self.shape(name)[0]
        if not isinstance(first, slice):
            return self._rows(name, 0, rows)[index]
        start, stop, step = first.indices(rows)
        if step != 1 or stop <= start:
            return self._rows(name, 0, rows)[index]
        head = self.config.head_dim if is_permuted(self.row, name) else 1
        begin, end = start // head * head, min(-(-stop // head) * head, rows)  # whole heads
        part = self._rows(name, begin, end)
        return part[(slice(start - begin, stop - begin), *others)]

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        values = self.file.rows(self.names_there[name], start, stop)
        return from_llamacpp(self.config, self.row, name, values)


def gguf_config(path: Path) -> ModelConfig:
    """The config of the model in a file.

    Raises WeightsError that lists everything in its keys that is not computed here.
    """
    return _config(open_gguf_file(path))


def open_gguf(path: Path) -> tuple[ModelConfig, GgufCheckpoint]:
    """Opens the config and the tensors of a file. Raises WeightsError."""
    config = gguf_config(path)
    return config, gguf_tensors(path, config)


def gguf_tensors(path: Path, config: ModelConfig) -> GgufCheckpoint:
    """The tensors of a file that holds a model of this config. Raises WeightsError."""
    file, row = open_gguf_file(path), ARCHITECTURES[config.family]
    name = tensor_names(config, row)
    there = {own: name(own) for own in tables.tensor_shapes(config)}
    names = {own: found for own, found in there.items() if found in file.tensors}
    unknown = set(file.tensors) - set(there.values()) - {ROPE}
    names |= {one: one for one in file.tensors if one in unknown}
    return GgufCheckpoint(file, config, row, names)


def gguf_tokenizer(path: Path, pre: str | None = None) -> Any:
    """The tokenizer of a file; None if it has none.

    `pre`: llama.cpp's name of the way to split texts, instead of the file's. Raises WeightsError.
    """
    return make_tokenizer(open_gguf_file(path).keys, path, pre)


def _config(file: GgufFile) -> ModelConfig:
    fields = read_fields(file)
    try:
        return ModelConfig(**(dict(get_family(fields["family"]).fields) | fields))
    except LorageError as error:
        raise WeightsError(f"{file.path}: {error}") from None
