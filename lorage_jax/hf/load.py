"""Loads a Hugging Face folder as a `Model`: safetensors byte ranges to stacked, sharded arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from lorage_jax.data.templates import ChatTemplate, Template, TemplateKind, has_chat_template
from lorage_jax.errors import DataError, WeightsError
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.manifest import MERGED, stored
from lorage_jax.files.safetensors import Checkpoint
from lorage_jax.hf import tables
from lorage_jax.hf.folder import open_folder
from lorage_jax.models.leaves import Leaf
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout


def load_model(
    folder: str | Path,
    dtype: str = "float32",
    layout: Layout | None = None,
) -> Model:
    """Loads config, weights and tokenizer of a Hugging Face folder.

    Args:
        folder: a folder with config.json, safetensors and tokenizer files; `~` is the home folder.
            Without tokenizer files, the model takes token ids only.
        dtype: "float32" or "bfloat16"; weights are cast to it.
        layout: how the weights are sharded over devices; each reads only its own part. Default:
            the first device holds all.

    Raises WeightsError that lists every problem with the folder.
    """
    folder = Path(folder).expanduser()
    if dtype not in DTYPES:
        raise WeightsError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    config, checkpoint, tokenizer, _ = open_folder(folder, with_tokenizer=True)

    def place(leaf: Leaf, row: tables.Row) -> jax.Array:
        sharding = (
            SingleDeviceSharding(jax.local_devices()[0])
            if layout is None
            else layout.sharding(leaf)
        )

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            return read_leaf(checkpoint, leaf, row, index or (), dtype)

        return jax.make_array_from_callback(leaf.shape, sharding, read)

    params: dict[str, Any] = {}
    for path, leaf, row in tables.rows(config):
        target = params
        for name in path[:-1]:
            target = target.setdefault(name, {})
        target[path[-1]] = place(leaf, row)
    template = folder_template(folder, tokenizer)
    return Model(config, params, tokenizer, folder, template=template)


def stored_dtype(folder: str | Path) -> str:
    """The dtype that loads a folder without loss, taken from its largest tensor."""
    checkpoint = Checkpoint.open(folder)
    largest = max(checkpoint.names(), key=lambda name: math.prod(checkpoint.shape(name)))
    return "bfloat16" if checkpoint.dtype(largest) == "BF16" else "float32"


def read_leaf(
    checkpoint: Checkpoint, leaf: Leaf, row: tables.Row, index: tuple[slice, ...], dtype: str
) -> np.ndarray:
    """Reads part `index` of one leaf from the file's byte ranges, cast to `dtype`."""
    if leaf.axes[0] != "layers":
        return _read_one(checkpoint, row, row.name, leaf.shape, index).astype(DTYPES[dtype])
    layers, inner = range(leaf.shape[0])[index[0]], index[1:]
    shape = leaf.shape[1:]
    size = tuple(len(range(n)[s]) for s, n in zip(inner, shape, strict=True))
    out = np.empty((len(layers), *size), DTYPES[dtype])
    for i, layer in enumerate(layers):
        out[i] = _read_one(checkpoint, row, row.name.format(layer=layer), shape, inner)
    return out


def _read_one(checkpoint, row, name, shape, index) -> np.ndarray:
    part, cut = tables.file_index(shape, row, index)
    return tables.from_file(checkpoint.read(name, part), shape, row, cut)


def folder_template(folder: Path, tokenizer: Any) -> Template | None:
    """The turns of a folder's model: those it was trained in, its chat template, or plain ones.

    None without a tokenizer. Raises WeightsError for turns that this version does not know.
    """
    if tokenizer is None:
        return None
    values = stored(folder)
    try:
        if values.get("format") == MERGED:
            return TemplateKind.of(values).on(tokenizer)
        if has_chat_template(tokenizer):
            return ChatTemplate(tokenizer)
    except DataError as error:
        raise WeightsError(f"{folder}: {error}") from None
    return TemplateKind().on(tokenizer)
