"""A `Model` of ours to a fresh Hugging Face folder: config, weights by the tables, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lorage_jax.hf import tables
from lorage_jax.hf.config import to_hf_config
from lorage_jax.hf.files import save
from lorage_jax.hf.folder import new_folder, write_manifest
from lorage_jax.models.model import Model


def save_model(model: Model, folder: str | Path, overwrite: bool = False) -> None:
    """Writes one safetensors file in the model's own dtype, beside and renamed."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf, row in tables.rows(model.config):
        value = model.params
        for name in path:
            value = value[name]
        array = np.asarray(value)
        if leaf.axes[0] != "layers":
            tensors[row.name] = tables.to_file(array, row)
            continue
        for layer, one in enumerate(array):
            tensors[row.name.format(layer=layer)] = tables.to_file(one, row)
    config = to_hf_config(model.config, str(model.dtype))
    with new_folder(folder, overwrite=overwrite) as temporary:
        save(temporary / "model.safetensors", tensors, {"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        model.tokenizer.save_pretrained(str(temporary))
        write_manifest(temporary, {"format": "lorage-model/1"})
