"""Saves a `Model` as a new Hugging Face folder with config, weights and tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.files.manifest import MODEL, write_manifest
from lorage_jax.files.outputs import new_folder
from lorage_jax.files.safetensors import INDEX, SINGLE, save
from lorage_jax.hf import tables
from lorage_jax.hf.config import model_config, to_hf_config
from lorage_jax.models.model import Model

SHARD_BYTES = 5 << 30  # maximum size of one file


def save_model(
    model: Model, folder: str | Path, overwrite: bool = False, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the model in its own dtype, as one weights file or as shards with an index.

    The folder is written to a temporary sibling, then renamed into place. Raises OutputError if it
    cannot be written, or exists without `overwrite`.
    """
    config = to_hf_config(model.config, str(model.dtype))
    with new_folder(folder, overwrite=overwrite) as temporary:
        _save_weights(model, temporary, shard_bytes)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        model.tokenizer.save_pretrained(str(temporary))
        write_manifest(temporary, {"format": MODEL})


def _tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor with its Hugging Face name."""
    get = functools.partial(tables.leaf_array, model.params)
    for name, make in tables.tensors(model.config, get):
        yield name, make()


def _save_weights(model: Model, folder: Path, shard_bytes: int) -> None:
    shard: dict[str, np.ndarray] = {}
    files: list[tuple[Path, list[str]]] = []
    size = total = 0

    def close() -> None:
        nonlocal shard, size
        path = folder / f"part{len(files)}.safetensors"
        save(path, shard, {"format": "pt"})
        files.append((path, list(shard)))
        shard, size = {}, 0

    for name, array in _tensors(model):
        if shard and size + array.nbytes > shard_bytes:
            close()
        shard[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    close()
    if len(files) == 1:
        files[0][0].rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(files, 1):
        final = f"model-{number:05}-of-{len(files):05}.safetensors"
        path.rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def check_describable(model: ModelConfig) -> None:
    """Raises ConfigError unless the model's config.json will describe it.

    A family may have no windows or biases, for example.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(to_hf_config(model, "float32"))
        (Path(folder) / "config.json").write_text(text, "utf-8")
        try:
            read = model_config(Path(folder))
        except WeightsError as error:
            reason = str(error).replace(folder, "its")
            raise ConfigError(f"the model cannot be saved as a {model.family}: {reason}") from None
    if lost := config_differences(model, read):
        raise ConfigError(
            f"a saved {model.family} would not be this model: {'; '.join(lost)}. "
            "Change these, or the family."
        )


def config_differences(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Describes the fields in which two models differ by more than rounding."""
    return [
        f"{field.name} {value!r}, there {there!r}"
        for field in dataclasses.fields(one)
        if (value := getattr(one, field.name)) != (there := getattr(other, field.name))
        and not (isinstance(value, float) and math.isclose(value, there or 0.0, rel_tol=1e-6))
    ]
