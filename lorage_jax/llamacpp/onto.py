"""Writes a specialised model over the GGUF file of its base: only the FFN's matrices change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.errors import WeightsError, bullets
from lorage_jax.files.gguf import GgufFile, library, open_gguf_file
from lorage_jax.gguf.architectures import get_architecture
from lorage_jax.gguf.tensors import tensor_names
from lorage_jax.hf import tables
from lorage_jax.llamacpp.export import add_ends, entries, place_of, read_source
from lorage_jax.llamacpp.file import TYPES, Entry, check_place, check_type, fitting_type, write_gguf
from lorage_jax.models.model import Model

TEMPLATE, ADD_BOS = "tokenizer.chat_template", "tokenizer.ggml.add_bos_token"
ARCHITECTURE = "general.architecture"  # the package's writer adds it by itself


def export_onto_gguf(
    model: Model | str | Path,
    base: str | Path,
    path: str | Path,
    type: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a GGUF file that differs from `base` in the FFN's matrices and in the turns.

    The end of the turns is added. All other tensors and keys are copied bit for bit, so nothing
    else is quantised anew and no tokenizer is converted.

    Args:
        model: the specialised model, or its folder.
        base: a GGUF file of its base, in any type.
        path: the file to write.
        type: how the FFN's matrices are stored, a key of `file.TYPES`; by default as in `base`, or
            as q8_0 where the base's type cannot be written.
        overwrite: replace the file if it exists and is a GGUF file, but not `base`.

    Raises WeightsError for a file that is not of the model's base, ConfigError for more than three
    ends, and OutputError.
    """
    if type is not None:
        check_type(type)
    check_place(path, overwrite, place_of(model), base)
    source = read_source(model)
    config, row = source.config, get_architecture(source.config)
    file = open_gguf_file(base)
    names = tensor_names(config, row)
    own = {entry.name: entry for entry in entries(source, row, "f32")}
    changed = {
        names(f"{module.format(layer=layer)}.weight")
        for module in tables.adapted(config)
        for layer in range(config.layers)
    }
    _check(file, row.name, own, changed)

    def add_keys(writer: Any) -> None:
        _copy_keys(writer, file)
        add_ends(writer, source.template.ends, file.keys)
        writer.add_chat_template(source.jinja)
        writer.add_add_bos_token(bool(source.template.bos))

    def tensors() -> Iterator[Entry]:
        for name, tensor in file.tensors.items():
            kind, shape = tensor.type.lower(), tensor.shape
            if name in changed:
                kind = type or (kind if kind in TYPES else "q8_0")
                yield Entry(name, shape, fitting_type(kind, shape), own[name].make)
            else:
                yield Entry(name, shape, kind, lambda name=name: file.raw(name), stored=True)

    write_gguf(path, row.name, add_keys, list(tensors()), overwrite)


def _copy_keys(writer: Any, file: GgufFile) -> None:
    """Copies all keys but those of the turns."""
    kinds = library().GGUFValueType
    for key, value in file.keys.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif key not in (ARCHITECTURE, TEMPLATE, ADD_BOS) and value != []:
            kind, inner = file.types[key]
            writer.add_key_value(key, value, kinds(kind), None if inner is None else kinds(inner))


def _check(file: GgufFile, architecture: str, own: dict[str, Entry], changed: set[str]) -> None:
    """Raises WeightsError unless the file is of the model's base, as far as its vectors tell."""
    found, theirs = file.tensors, file.keys.get(ARCHITECTURE)
    problems = [f"it is a {theirs}, expected a {architecture}"] if theirs != architecture else []
    problems += [f"{name} is missing" for name in sorted(changed - set(found))]
    for name in sorted(set(found) & set(own)):
        shape, expected = found[name].shape, own[name]
        if shape != expected.shape:
            problems.append(f"{name} has shape {shape}; expected {expected.shape}")
        elif len(shape) == 1 and not np.allclose(
            np.asarray(file.rows(name, 0, shape[0]), np.float32),
            np.asarray(expected.make(), np.float32),
            rtol=1e-2,
            atol=1e-2,
        ):
            problems.append(f"{name} has other values")
    if problems:
        raise WeightsError(f"{file.path} is not a file of this model's base:\n{bullets(problems)}")
