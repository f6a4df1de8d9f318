"""One card's LoRA as a PEFT folder, for servers and tools that load adapters beside the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lorage_jax.data.prompts import TEMPLATE_VERSION
from lorage_jax.generator.card import Card
from lorage_jax.generator.pool import Pool, assemble, assembled_rank
from lorage_jax.hf import tables
from lorage_jax.hf.export import ffn_tensors
from lorage_jax.hf.files import save
from lorage_jax.hf.folder import check_target, new_folder, write_manifest
from lorage_jax.models.model import Model

FORMAT = "lorage-adapter/1"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def export_adapter(
    pool: Pool,
    card: Card,
    edge: Model,
    out_dir: str | Path,
    overwrite: bool = False,
    base_name: str | None = None,
) -> None:
    """Writes the assembled LoRA of `card` as a PEFT folder of `edge`, factors in float32.

    `base_name`: what the folder calls its base model; the edge's own folder when not given.
    Rank R, or K * R when the experts' products are summed. Raises WeightsError when the card is of
    another generator or edge, and OutputError.
    """
    card.check(edge, pool)
    check_target(out_dir, overwrite)
    rank = assembled_rank(pool, card.gates)
    # PEFT multiplies by lora_alpha / r: the factors are written without the scale.
    factors = assemble(pool.replace(scale=1.0), jnp.asarray(card.gates), rank)
    tensors = {}
    for name, leaf, layer, _ in ffn_tensors(edge.config):
        a, b = factors[leaf]
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = np.asarray(a[layer]).T
        tensors[f"{stem}.lora_B.weight"] = np.asarray(b[layer]).T
    with new_folder(out_dir, overwrite=overwrite) as folder:
        save(folder / TENSORS, tensors, {"format": "pt"})
        config = json.dumps(peft_config(pool, edge, rank, base_name), indent=2) + "\n"
        (folder / CONFIG).write_text(config, "utf-8")
        values = {
            "format": FORMAT,
            "generator": pool.generator,
            "base": {"fingerprint": edge.fingerprint},
            "templates": TEMPLATE_VERSION,
            "card": card.to_dict(),
        }
        write_manifest(folder, values)


def peft_config(pool: Pool, edge: Model, rank: int, base_name: str | None) -> dict[str, Any]:
    """adapter_config.json of a LoRA of this rank on the edge's FFN projections."""
    if base_name is None and edge.source is not None:
        base_name = str(edge.source.absolute())
    alpha = pool.scale * rank
    modules = [tables.row(edge.config, ("layers", leaf)).name.split(".")[-2] for leaf in tables.FFN]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
