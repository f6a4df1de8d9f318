"""One card's LoRA as a PEFT folder, for servers and tools that load adapters beside the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag

from lorage_jax.config import ModelConfig
from lorage_jax.files.manifest import write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.files.safetensors import save
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import check_kinds, trained_template
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.hf import tables
from lorage_jax.hf.arithmetic import arithmetic
from lorage_jax.hf.export import write_template
from lorage_jax.hf.hub_card import (
    SCORES,
    describe_card,
    licence_text,
    origin,
    portable_name,
    write_hub_card,
)
from lorage_jax.hf.multimodal import module_name
from lorage_jax.hf.peft import CONFIG, TENSORS
from lorage_jax.hf.peft_weights import PREFIX
from lorage_jax.hf.tokenizer import save_tokenizer
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

FORMAT = "lorage-adapter/1"


def export_adapter(
    pool: Pool,
    card: Card,
    edge: Model,
    out_dir: str | Path,
    overwrite: bool = False,
    base_name: str | None = None,
) -> None:
    """Writes the assembled LoRA of `card` as a PEFT folder of `edge`, factors in float32.

    The tokenizer is beside it, with the chat template of the trained turns.

    `base_name`: what the folder calls its base model; by default `portable_name` of the edge's.
    Rank R, or K * R when the experts' products are summed; N times that in a module that fuses N
    projections: its A stacks theirs, and its B is block-diagonal. Raises WeightsError when the card
    is of another generator or edge, ConfigError for an argument of another kind, and OutputError.
    """
    check_kinds(edge, pool, card)
    card.check(edge, pool)
    check_target(out_dir, overwrite, edge.source)
    rank, matrices = card_matrices(pool, card, edge.config)
    tensors = {}
    for module, (a, b) in matrices.items():
        stem = PREFIX + module_name(module, edge.source)
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    with new_folder(out_dir, overwrite=overwrite) as folder:
        save(folder / TENSORS, tensors, {"format": "pt"})
        if (template := trained_template(edge, card)) is not None:
            save_tokenizer(edge.tokenizer, folder)
            write_template(template, folder)
        config = json.dumps(peft_config(pool, edge, rank, base_name), indent=2) + "\n"
        (folder / CONFIG).write_text(config, "utf-8")
        _write_hub_card(folder, card, edge, base_name)
        values = {
            "format": FORMAT,
            "generator": pool.generator,
            "base": {
                "fingerprint": edge.fingerprint,
                "arithmetic": arithmetic(edge.config),
            },
            **card.template.to_dict(),
            "card": card.to_dict(),
        }
        write_manifest(folder, values)


USE = """Ask in the turns of this folder's chat template, without a system message, which is in the
adapter.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{adapter}")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{adapter}")
```

In lorage_jax: `lg.load_adapter("{adapter}", lg.load_model("{base}"))`."""


def _write_hub_card(folder: Path, card: Card, edge: Model, base_name: str | None) -> None:
    base = base_name or ("the edge" if edge.source is None else portable_name(edge.source))
    parts = {
        "": f"A LoRA for `{base}`, {origin(card)}.",
        "Use": USE.format(base=base, adapter="THIS_FOLDER"),
        "Made from": describe_card(card),
        "Scores": SCORES,
        "Licence": licence_text({"base": edge.source}),
    }
    title = f"{base}, specialised by a system prompt"
    write_hub_card(folder, title, parts, bases=[edge.source], library="peft", relation="adapter")


def card_matrices(
    pool: Pool, card: Card, edge: ModelConfig
) -> tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The rank R, and A [R, in] and B [out, R] of every module that a card changes, by its name.

    The update is `pool.scale * B @ A`. A module that fuses N projections has N * R.
    """
    rank = assembled_rank(pool, card.gates)
    factors = assemble(pool.replace(scale=1.0), jnp.asarray(card.gates), rank)
    found = {}
    for module, leaves in tables.adapted(edge).items():
        a, b = zip(*(factors[leaf] for leaf in leaves), strict=True)
        for layer in range(edge.layers):
            down = np.concatenate([np.asarray(one[layer]).T for one in a])
            up = np.asarray(block_diag(*(np.asarray(one[layer]).T for one in b)))
            found[module.format(layer=layer)] = (down, up)
    return rank, found


def peft_config(pool: Pool, edge: Model, rank: int, base_name: str | None) -> dict[str, Any]:
    """adapter_config.json of a LoRA of this rank on the edge's FFN projections."""
    modules = {module: len(leaves) for module, leaves in tables.adapted(edge.config).items()}
    return lora_config(edge, modules, rank, pool.scale * rank, base_name)


def lora_config(
    edge: Model,
    updates: Mapping[str, int],
    rank: int,
    alpha: float,
    base_name: str | None = None,
    *,
    dora: bool = False,
) -> dict[str, Any]:
    """adapter_config.json of a LoRA or DoRA.

    `updates`: the number of updates of each module, more than 1 where it fuses several projections.
    """
    if base_name is None and edge.source is not None:
        base_name = portable_name(edge.source)
    modules = {module.rsplit(".", 1)[-1]: count for module, count in updates.items()}
    alpha = _number(alpha)
    fused = {module: count for module, count in modules.items() if count > 1}
    patterns = {
        "rank_pattern": {module: count * rank for module, count in fused.items()},
        "alpha_pattern": {module: count * alpha for module, count in fused.items()},
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        **(patterns if fused else {}),
        "lora_dropout": 0.0,
        "target_modules": list(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": dora,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
