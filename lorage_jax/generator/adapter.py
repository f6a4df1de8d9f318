"""One card's LoRA as a PEFT folder, for servers and tools that load adapters beside the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.data.templates import TEMPLATE_VERSION
from lorage_jax.errors import WeightsError
from lorage_jax.files.manifest import stored, write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.files.safetensors import read_tensors, save
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import merge_weights
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.hf import tables
from lorage_jax.hf.export import ffn_tensors
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

FORMAT = "lorage-adapter/1"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT wraps the model twice
# Settings of PEFT by which the same tensors mean something else. Other models' settings, and those
# of training (dropout, ways to begin), change nothing here.
FOREIGN = (
    "use_dora",
    "use_qalora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layer_replication",
    "modules_to_save",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)


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
    """The edge with a PEFT folder's LoRA merged, as PEFT itself would merge it.

    It must be on the three FFN projections of every layer, all of one rank, and on nothing else.
    WeightsError lists every tensor that is missing, unknown or of another shape, and names what the
    folder asks for beyond a plain LoRA, or an edge that one of our adapters was not made for.
    """
    folder = Path(folder)
    rank, scale = _rank_and_scale(folder)
    _check_base(folder, edge)
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

    factors = {leaf: (stacked(leaf, "A"), stacked(leaf, "B") * scale) for leaf in tables.FFN}
    merged = merge_weights(ffn, factors, donate=False)
    return edge.replace(params=edge.params | {"layers": edge.params["layers"] | merged})


def _rank_and_scale(folder: Path) -> tuple[int, float]:
    """Rank and scale of a PEFT folder with a plain LoRA; rsLoRA scales by alpha / sqrt(r)."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        kind, bias = config["peft_type"], config.get("bias") or "none"
        asked = [name for name in FOREIGN if config.get(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{folder} is not a PEFT folder: {CONFIG} cannot be read ({error!r})."
        ) from None
    if rank < 1:
        raise WeightsError(f"{folder / CONFIG}: r is {rank}; expected 1 or more.")
    if kind != "LORA" or bias != "none" or asked:
        other = [f"peft_type {kind!r}"] * (kind != "LORA") + [f"bias {bias!r}"] * (bias != "none")
        raise WeightsError(
            f"{folder} is more than a plain LoRA ({', '.join(other + asked)} in {CONFIG}). "
            "Merge it with peft, and load the merged folder."
        )
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _check_base(folder: Path, edge: Model) -> None:
    """Raises WeightsError if the adapter is one of ours, made for other weights."""
    base = stored(folder).get("base")
    ours = base.get("fingerprint") if isinstance(base, dict) else None
    if not isinstance(ours, str):
        return
    if ours != edge.fingerprint:
        raise WeightsError(
            f"{folder} was made for an edge with the weights {ours[:19]}..., not for "
            f"{edge.fingerprint[:19]}... ({edge.source}). Load the edge that it was made for."
        )


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
