"""One card's LoRA as a PEFT folder, for servers and tools that load adapters beside the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.data.prompts import TEMPLATE_VERSION
from lorage_jax.errors import WeightsError
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import merge_weights
from lorage_jax.generator.pool import Pool, assemble, assembled_rank
from lorage_jax.hf import tables
from lorage_jax.hf.export import ffn_tensors
from lorage_jax.hf.files import read_tensors, save
from lorage_jax.hf.folder import check_target, new_folder, write_manifest
from lorage_jax.models.model import Model

FORMAT = "lorage-adapter/1"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT wraps the model twice


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
        stem = PREFIX + name.removesuffix(".weight")
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


def load_adapter(folder: str | Path, edge: Model) -> Model:
    """The edge with a PEFT folder's LoRA on its FFN merged, as PEFT itself would merge it.

    WeightsError lists every tensor that is missing, unknown or of another shape.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder} is not a PEFT folder: {CONFIG} cannot be read ({error!r})."
        ) from None
    ffn = {leaf: edge.params["layers"][leaf] for leaf in tables.FFN}
    wanted = {
        f"{PREFIX}{name.removesuffix('.weight')}.lora_{part}.weight": (leaf, part)
        for name, leaf, _, _ in ffn_tensors(edge.config)
        for part in "AB"
    }
    shapes = {
        name: (rank, ffn[leaf].shape[1]) if part == "A" else (ffn[leaf].shape[2], rank)
        for name, (leaf, part) in wanted.items()
    }
    found = read_tensors(folder / TENSORS, shapes)

    def stacked(leaf: str, part: str) -> jax.Array:  # [L, I, R] or [L, R, O]
        return jnp.stack([found[n].T for n, of in wanted.items() if of == (leaf, part)])

    factors = {
        leaf: (stacked(leaf, "A"), stacked(leaf, "B") * (alpha / rank)) for leaf in tables.FFN
    }
    merged = merge_weights(ffn, factors, donate=False)
    return edge.replace(params=edge.params | {"layers": edge.params["layers"] | merged})


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
