"""Writes a specialised model over the GGUF file of its base: only the FFN's matrices change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.errors import WeightsError, bullets
from lorage_jax.files.outputs import check_file
from lorage_jax.hf import tables
from lorage_jax.llamacpp.architectures import get_architecture
from lorage_jax.llamacpp.export import entries, read_source, tensor_names
from lorage_jax.llamacpp.file import TYPES, Entry, check_type, fitting_type, library, write_gguf
from lorage_jax.models.model import Model

TEMPLATE, ADD_BOS = "tokenizer.chat_template", "tokenizer.ggml.add_bos_token"
# Written by the package itself: the reader's names for the header, and the writer's first key.
OWN = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")


def export_onto_gguf(
    model: Model | str | Path,
    base: str | Path,
    path: str | Path,
    type: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a GGUF file that differs from `base` in the FFN's matrices and in the turns.

    All other tensors and keys are copied bit for bit, so nothing else is quantised anew and no
    tokenizer is converted.

    Args:
        model: the specialised model, or its folder.
        base: a GGUF file of its base, in any type.
        path: the file to write.
        type: how the FFN's matrices are stored, a key of `file.TYPES`; by default as in `base`, or
            as q8_0 where the base's type cannot be written.
        overwrite: replace the file if it exists.

    Raises WeightsError for a file that is not of the model's base, and OutputError.
    """
    if type is not None:
        check_type(type)
    check_file(path, overwrite)
    source = read_source(model)
    config, row = source.config, get_architecture(source.config)
    reader = _open(Path(base).expanduser())
    names = tensor_names(config, row)
    own = {entry.name: entry for entry in entries(source, row, "f32")}
    changed = {
        names(f"{module.format(layer=layer)}.weight")
        for module in tables.adapted(config)
        for layer in range(config.layers)
    }
    _check(reader, row.name, own, changed, base)

    def add_keys(writer: Any) -> None:
        for key, field in reader.fields.items():
            if key == "general.alignment":
                writer.add_custom_alignment(field.contents())
            elif key not in (*OWN, TEMPLATE, ADD_BOS) and field.contents() != []:
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], inner)
        writer.add_chat_template(source.jinja)
        writer.add_add_bos_token(bool(source.template.bos))

    def tensors() -> Iterator[Entry]:
        for tensor in reader.tensors:
            kind, shape = tensor.tensor_type.name.lower(), _shape(tensor)
            if tensor.name in changed:
                kind = type or (kind if kind in TYPES else "q8_0")
                yield Entry(tensor.name, shape, fitting_type(kind, shape), own[tensor.name].make)
            else:
                yield Entry(tensor.name, shape, kind, lambda data=tensor.data: data, stored=True)

    write_gguf(path, row.name, add_keys, list(tensors()), overwrite)


def _open(base: Path) -> Any:
    try:
        return library().GGUFReader(base)
    except (OSError, ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{base} is not a GGUF file that can be read ({reason}).") from None


def _shape(tensor: Any) -> tuple[int, ...]:
    """The shape in numpy's order."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _check(
    reader: Any, architecture: str, own: dict[str, Entry], changed: set[str], base: str | Path
) -> None:
    """Raises WeightsError unless the file is of the model's base, as far as its vectors tell."""
    found = {tensor.name: tensor for tensor in reader.tensors}
    field = reader.fields.get("general.architecture")
    theirs = None if field is None else field.contents()
    problems = [f"it is a {theirs}, expected a {architecture}"] if theirs != architecture else []
    problems += [f"{name} is missing" for name in sorted(changed - set(found))]
    for name in sorted(set(found) & set(own)):
        tensor, expected = found[name], own[name]
        if _shape(tensor) != expected.shape:
            problems.append(f"{name} has shape {_shape(tensor)}; expected {expected.shape}")
        elif len(expected.shape) == 1 and not np.allclose(
            library().dequantize(tensor.data, tensor.tensor_type),
            np.asarray(expected.make(), np.float32),
            rtol=1e-2,
            atol=1e-2,
        ):
            problems.append(f"{name} has other values")
    if problems:
        raise WeightsError(f"{base} is not a file of this model's base:\n{bullets(problems)}")
