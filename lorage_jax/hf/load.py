"""Loads a Hugging Face folder as a `Model`: safetensors byte ranges to stacked, sharded arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from lorage_jax.config import ModelConfig
from lorage_jax.errors import WeightsError, bullets
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.safetensors import FLOATS, Checkpoint
from lorage_jax.hf import tables
from lorage_jax.hf.config import model_config, read_config
from lorage_jax.hf.multimodal import text_part
from lorage_jax.models.leaves import Leaf
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout

T = TypeVar("T")
# Buffers stored by older checkpoints; they are recomputed.
IGNORABLE = ("rotary_emb.inv_freq",)


def load_model(
    folder: str | Path,
    dtype: str = "float32",
    layout: Layout | None = None,
) -> Model:
    """Loads config, weights and tokenizer of a Hugging Face folder.

    Args:
        folder: a folder with config.json, tokenizer files and safetensors.
        dtype: "float32" or "bfloat16"; weights are cast to it.
        layout: how the weights are sharded over devices; each reads only its own part. Default:
            the first device holds all.

    Raises WeightsError that lists every problem with the folder.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise WeightsError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    config, checkpoint, tokenizer = _open(folder)

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
    return Model(config, params, tokenizer, folder)


def stored_dtype(folder: str | Path) -> str:
    """The dtype that loads a folder without loss, taken from its largest tensor."""
    checkpoint = Checkpoint.open(folder)
    largest = max(checkpoint.names(), key=lambda name: math.prod(checkpoint.shape(name)))
    return "bfloat16" if checkpoint.dtype(largest) == "BF16" else "float32"


def _open(folder: Path) -> tuple[ModelConfig, Checkpoint, Any]:
    """Opens config, checkpoint and tokenizer; reports all of their problems in one error."""
    if not folder.is_dir():
        raise WeightsError(f"{folder} is not a folder. Expected a Hugging Face model folder.")
    read_config(folder)  # without it, nothing else is worth reporting
    problems: list[str] = []
    config = _attempt(model_config, folder, problems)
    checkpoint = _attempt(text_part, folder, problems)
    # If the config is bad, transformers would refuse the tokenizer for the same reason.
    tokenizer = _attempt(load_tokenizer, folder, problems) if config is not None else None
    if config is None or checkpoint is None or problems:
        raise WeightsError("\n".join(problems))
    _check(config, checkpoint, folder)
    return config, checkpoint, tokenizer


def _attempt(read: Callable[[Path], T], folder: Path, problems: list[str]) -> T | None:
    """Returns `read(folder)`; on a WeightsError, adds it to `problems` and returns None."""
    try:
        return read(folder)
    except WeightsError as error:
        problems.append(str(error))
        return None


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


def _check(config: ModelConfig, checkpoint: Checkpoint, folder: Path) -> None:
    """Raises WeightsError unless the tensors are exactly the model's leaves, in name and shape."""
    problems, expected = [], set()
    for _, leaf, row in tables.rows(config):
        stacked = leaf.axes[0] == "layers"
        want = tables.tensor_shape(leaf.shape[1:] if stacked else leaf.shape, row)
        for layer in range(leaf.shape[0]) if stacked else (0,):
            name = row.name.format(layer=layer)
            if name in expected:  # fused: another leaf's too
                continue
            expected.add(name)
            if name not in checkpoint:
                problems.append(f"{name} is missing; expected shape {want}")
            elif checkpoint.shape(name) != want:
                problems.append(f"{name} has shape {checkpoint.shape(name)}; config says {want}")
            elif checkpoint.dtype(name) not in FLOATS.values():
                problems.append(f"{name} is {checkpoint.dtype(name)}; expected floating point")
    if config.tied_head:
        expected.add("lm_head.weight")  # some exporters write the tied head a second time
    for name in checkpoint.names():
        if name not in expected and not name.endswith(IGNORABLE):
            problems.append(f"{name} {checkpoint.shape(name)} is not part of a {config.family}")
    if problems:
        raise WeightsError(
            f"{folder}: the weights do not fit config.json "
            f"({len(problems)} problem{'s' * (len(problems) > 1)}):\n{bullets(problems)}"
        )


def load_tokenizer(folder: Path) -> Any:
    """Loads the folder's tokenizer without running code from the folder.

    Raises WeightsError if there is none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many types; all mean the same to a user
        reason = " ".join(str(error).split())[:200].rstrip(". ") or repr(error)
        raise WeightsError(
            f"{folder}: no usable tokenizer ({reason}). Expected tokenizer.json and "
            "tokenizer_config.json next to config.json."
        ) from None
