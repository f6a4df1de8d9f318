"""Loads a folder or a GGUF file as a `Model`: byte ranges of tensors to stacked, sharded arrays."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from lorage_jax.config import ModelConfig
from lorage_jax.data.templates import ChatTemplate, Template, TemplateKind, has_chat_template
from lorage_jax.errors import DataError, WeightsError
from lorage_jax.fields import home_path, require_kind
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.manifest import MERGED, OWN_TURNS, manifest_of
from lorage_jax.files.safetensors import FLOATS, Tensors, main_dtype
from lorage_jax.hf import tables
from lorage_jax.hf.dtype import check_dtype, choose_dtype
from lorage_jax.hf.source import open_model
from lorage_jax.models.leaves import Leaf
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout

_log = logging.getLogger(__name__)


def load_model(
    folder: str | Path,
    dtype: str = "auto",
    layout: Layout | None = None,
) -> Model:
    """Loads config, weights and tokenizer of a Hugging Face folder or a GGUF file.

    Args:
        folder: a folder with config.json, safetensors and tokenizer files, or a GGUF file, whose
            weights are dequantised; `~` is the home folder. Without a tokenizer, the model takes
            token ids only.
        dtype: "float32", "bfloat16" or "float16"; weights are cast to it. "auto" is bfloat16 on TPU
            and GPU, and float32 on a CPU, see `dtype.py`.
        layout: how the weights are sharded over devices; each reads only its own part. Default:
            the first device holds all.

    Raises WeightsError that lists every problem with the folder or file.
    """
    require_kind(folder, str | PathLike, "folder", "a Hugging Face folder, or a GGUF file")
    folder = home_path(folder)
    check_dtype(dtype)  # before the files are read
    config, checkpoint, tokenizer, _ = open_model(folder, with_tokenizer=True)
    device = jax.local_devices()[0] if layout is None else layout.mesh.devices.flat[0]
    dtype = choose_dtype(dtype, config, device.platform)
    params = read_params(config, checkpoint, dtype, layout)
    return Model(config, params, tokenizer, folder_template(folder, tokenizer), folder)


def read_params(
    config: ModelConfig, checkpoint: Tensors, dtype: str, layout: Layout | None = None
) -> dict[str, Any]:
    """The parameters of a checked model: on the first device, or sharded by `layout`."""
    device = jax.local_devices()[0]

    def place(leaf: Leaf, row: tables.Row) -> jax.Array:
        sharding = SingleDeviceSharding(device) if layout is None else layout.sharding(leaf)

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            return read_leaf(checkpoint, leaf, row, index or (), dtype)

        return jax.make_array_from_callback(leaf.shape, sharding, read)

    params: dict[str, Any] = {}
    for path, leaf, row in tables.rows(config):
        target = params
        for name in path[:-1]:
            target = target.setdefault(name, {})
        target[path[-1]] = place(leaf, row)
    return params


def stored_dtypes(folder: str | Path) -> tuple[str, str]:
    """The dtype of a model's largest tensor, and the one that loads all its tensors without loss.

    They differ where a folder mixes dtypes, such as bfloat16 matrices and float32 norms.
    """
    tensors = open_model(Path(folder)).checkpoint
    main = {"BF16": "bfloat16", "F16": "float16"}.get(main_dtype(tensors), "float32")
    found = {tensors.dtype(name) for name in tensors.names()} & set(FLOATS.values())
    return main, main if len(found) == 1 else "float32"


def read_leaf(
    checkpoint: Tensors, leaf: Leaf, row: tables.Row, index: tuple[slice, ...], dtype: str
) -> np.ndarray:
    """Reads part `index` of one leaf from the file's byte ranges, cast to `dtype`."""
    if leaf.axes[0] != "layers":
        part = _read_one(checkpoint, row, row.name, leaf.shape, index)
        return _cast(part, dtype, row.name)
    layers, inner = range(leaf.shape[0])[index[0]], index[1:]
    shape = leaf.shape[1:]
    size = tuple(len(range(n)[s]) for s, n in zip(inner, shape, strict=True))
    out = np.empty((len(layers), *size), DTYPES[dtype])
    for i, layer in enumerate(layers):
        name = row.name.format(layer=layer)
        out[i] = _cast(_read_one(checkpoint, row, name, shape, inner), dtype, name)
    return out


def _cast(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Casts a part of a tensor. Raises WeightsError if a finite number overflows."""
    with np.errstate(over="ignore"):
        cast = values.astype(DTYPES[dtype], copy=False)
    if dtype == "float16" and (np.isinf(cast) & np.isfinite(values)).any():
        raise WeightsError(
            f"{name}: a value does not fit float16, whose largest number is 65504. Use bfloat16 or "
            "float32."
        )
    return cast


def _read_one(checkpoint, row, name, shape, index) -> np.ndarray:
    part, cut = tables.file_index(shape, row, index)
    return tables.from_file(checkpoint.read(name, part), shape, row, cut)


def folder_template(folder: Path, tokenizer: Any) -> Template | None:
    """The turns of a folder's model: those it was trained in, its chat template, or plain ones.

    None without a tokenizer. A chat template that cannot render a question is left alone, with a
    warning: text and token ids need none. Raises WeightsError for trained turns that this version
    does not know.
    """
    if tokenizer is None:
        return None
    values = manifest_of(folder)
    try:
        if values.get("format") == MERGED and not values.get(OWN_TURNS):
            return TemplateKind.of(values).on(tokenizer)
    except DataError as error:
        raise WeightsError(f"{folder}: {error}") from None
    if has_chat_template(tokenizer):
        try:
            return ChatTemplate(tokenizer, untrained=True)
        except DataError as error:
            why = str(error).rstrip(".")
            _log.warning("%s: %s. Falling back to plain turns (User:, Assistant:).", folder, why)
    return TemplateKind().on(tokenizer)
