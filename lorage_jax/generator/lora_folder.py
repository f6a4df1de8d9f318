"""Trained LoRA, DoRA or VeRA as a PEFT folder: the same folder is the result of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.files.safetensors import save
from lorage_jax.generator.adapter import lora_config
from lorage_jax.generator.loras import Form, Updates, layer_updates
from lorage_jax.hf import tables
from lorage_jax.hf.hub_card import portable_name
from lorage_jax.hf.multimodal import module_name
from lorage_jax.hf.peft import CONFIG, TENSORS
from lorage_jax.hf.peft_weights import PREFIX, Update
from lorage_jax.models.leaves import layer_leaves
from lorage_jax.models.model import Model


def check_form(edge: ModelConfig, form: Form, targets: Sequence[str]) -> None:
    """Raises ConfigError if no PEFT folder can hold this form on these linear layers.

    Some families keep several projections in one matrix, which PEFT adapts as one.
    """
    for module, leaves in tables.adapted(edge, targets).items():
        name, fused = module.rsplit(".", 1)[-1], ", ".join(leaves)
        if form == "vera" and len(leaves) > 1:
            raise ConfigError(
                f"form is vera, but {edge.family} keeps {fused} in one matrix, {name}, for which "
                "PEFT has a single vector. Use lora or dora, or leave these targets out."
            )
        if form == "dora" and not set(leaves) <= set(targets):
            raise ConfigError(
                f"form is dora, but {edge.family} keeps {fused} in one matrix, {name}: name all of "
                "them as targets, or none."
            )


def write_lora(
    folder: Path, edge: Model, updates: Updates, rank: int, alpha: float, *, dora: bool = False
) -> None:
    """Writes config and tensors of a LoRA or DoRA, factors in float32, into an existing folder."""
    targets, tensors = list(updates), {}
    by_place = {(u.leaf[-1], u.layer): u for u in layer_updates(edge.config, updates, 1.0)}
    modules = tables.adapted(edge.config, targets)
    for stem, layer, leaves in _modules(edge, modules):
        parts = [by_place.get((leaf, layer)) for leaf in leaves]
        sizes = [_outputs(edge.config, leaf) for leaf in leaves]
        a, b = _fused(parts, sizes)
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a, b
        lengths = [part.magnitude for part in parts if part and part.magnitude is not None]
        if lengths:
            tensors[f"{stem}.lora_magnitude_vector"] = np.concatenate(lengths)
    save(folder / TENSORS, tensors, {"format": "pt"})
    counts = {m: sum(leaf in targets for leaf in leaves) for m, leaves in modules.items()}
    _write_config(folder, lora_config(edge, counts, rank, alpha, dora=dora))


def write_vera(
    folder: Path, edge: Model, trained: Updates, projections: Mapping[str, Any], seed: int
) -> None:
    """Writes config and tensors of a VeRA, its projections included, into an existing folder."""
    a, b = (np.asarray(projections[part], np.float32).T for part in ("a", "b"))
    tensors = {
        "base_model.vera_A": np.ascontiguousarray(a),
        "base_model.vera_B": np.ascontiguousarray(b),
    }
    modules = tables.adapted(edge.config, list(trained))
    for stem, layer, (leaf,) in _modules(edge, modules):
        one = trained[leaf]
        tensors[f"{stem}.vera_lambda_d"] = np.asarray(one["d"][layer], np.float32)
        tensors[f"{stem}.vera_lambda_b"] = np.asarray(one["b"][layer], np.float32).reshape(-1)
    save(folder / TENSORS, tensors, {"format": "pt"})
    _write_config(
        folder,
        {
            "peft_type": "VERA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None if edge.source is None else portable_name(edge.source),
            "r": a.shape[0],
            "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
            "projection_prng_key": seed,
            "save_projection": True,
            "vera_dropout": 0.0,
            "d_initial": 0.1,
            "fan_in_fan_out": False,
            "bias": "none",
            "modules_to_save": None,
            "init_weights": True,
            "inference_mode": True,
        },
    )


def _modules(
    edge: Model, modules: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """(the module's name in a file of PEFT, layer, leaves) of all layers."""
    for module, leaves in modules.items():
        name = PREFIX + module_name(module, edge.source)
        for layer in range(edge.config.layers):
            yield name.format(layer=layer), layer, leaves


def _fused(parts: Sequence[Update | None], sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A of a module, the parts' one below the other, and its B, block-diagonal.

    A part of `sizes` outputs without an update has rows of zeros in B.
    """
    own = [part for part in parts if part is not None]
    a = np.concatenate([part.a for part in own])
    b = np.zeros((sum(sizes), a.shape[0]), np.float32)
    row = column = 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            b[row : row + size, column : column + part.a.shape[0]] = part.b
            column += part.a.shape[0]
        row += size
    return np.ascontiguousarray(a), b


def _outputs(edge: ModelConfig, leaf: str) -> int:
    row = tables.row(edge, ("layers", leaf))
    return tables.file_shape(layer_leaves(edge)[leaf].shape, row)[0]


def _write_config(folder: Path, values: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
