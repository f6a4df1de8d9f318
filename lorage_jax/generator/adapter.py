"""One card's LoRA as a PEFT folder, for servers and tools that load adapters beside the base."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag

from lorage_jax.data.templates import TEMPLATE_VERSION
from lorage_jax.errors import WeightsError
from lorage_jax.files.manifest import stored, write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.files.safetensors import read_tensors, save
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import merge_weights
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.hf import tables
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
    "layers_to_transform",
    "layer_replication",
    "modules_to_save",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)


PATTERNS = ("rank_pattern", "alpha_pattern")  # by the last part of a module's name


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
    Rank R, or K * R when the experts' products are summed; N times that in a module that fuses N
    projections: its A stacks theirs, and its B is block-diagonal. Raises WeightsError when the card
    is of another generator or edge, and OutputError.
    """
    card.check(edge, pool)
    check_target(out_dir, overwrite)
    rank = assembled_rank(pool, card.gates)
    # PEFT multiplies by lora_alpha / r: the factors are written without the scale.
    factors = assemble(pool.replace(scale=1.0), jnp.asarray(card.gates), rank)
    tensors = {}
    for module, leaves in tables.adapted(edge.config).items():
        a, b = zip(*(factors[leaf] for leaf in leaves), strict=True)
        for layer in range(edge.config.layers):
            stem = PREFIX + module.format(layer=layer)
            down = [np.asarray(one[layer]).T for one in a]
            up = [np.asarray(one[layer]).T for one in b]
            tensors[f"{stem}.lora_A.weight"] = np.concatenate(down)
            tensors[f"{stem}.lora_B.weight"] = np.asarray(block_diag(*up))
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

    It must be on all FFN projections of every layer, and on nothing else. A module's rank must be
    the same in all layers.
    WeightsError lists every tensor that is missing, unknown or of another shape, and names what the
    folder asks for beyond a plain LoRA, or an edge that one of our adapters was not made for.
    """
    folder = Path(folder)
    modules = tables.adapted(edge.config)
    sizes = _ranks_and_scales(folder, modules)
    _check_base(folder, edge)
    ffn = {leaf: edge.params["layers"][leaf] for leaf in edge.config.projections}

    def names(module: str, part: str) -> list[str]:
        layers = range(edge.config.layers)
        return [f"{PREFIX}{module.format(layer=i)}.lora_{part}.weight" for i in layers]

    shapes: dict[str, tuple[int, ...]] = {}
    for module, leaves in modules.items():
        rank, outputs = sizes[module][0], sum(ffn[leaf].shape[2] for leaf in leaves)
        shapes |= dict.fromkeys(names(module, "A"), (rank, ffn[leaves[0]].shape[1]))
        shapes |= dict.fromkeys(names(module, "B"), (outputs, rank))
    found = read_tensors(folder / TENSORS, shapes)

    factors = {}
    for module, leaves in modules.items():
        a = jnp.stack([found[name].T for name in names(module, "A")])  # [L, I, R]
        b = jnp.stack([found[name].T for name in names(module, "B")])  # [L, R, O of all leaves]
        ends = np.cumsum([ffn[leaf].shape[2] for leaf in leaves])[:-1]
        for leaf, own in zip(leaves, jnp.split(b, ends, axis=2), strict=True):
            factors[leaf] = (a, own * sizes[module][1])
    merged = merge_weights(ffn, factors, donate=False)
    return edge.replace(params=edge.params | {"layers": edge.params["layers"] | merged})


def _ranks_and_scales(folder: Path, modules: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Rank and scale of each module in a PEFT folder with a plain LoRA.

    rsLoRA scales by alpha / sqrt(r).
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        kind, bias = config["peft_type"], config.get("bias") or "none"
        asked = [name for name in FOREIGN if config.get(name)]
        short = {module: module.rsplit(".", 1)[-1] for module in modules}
        ranks, alphas = (dict(config.get(name) or {}) for name in PATTERNS)
        asked += [
            name
            for name, values in zip(PATTERNS, (ranks, alphas), strict=True)
            if not set(values) <= set(short.values())
        ]
        found = {
            module: (int(ranks.get(name, rank)), float(alphas.get(name, alpha)))
            for module, name in short.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{folder} is not a PEFT folder: {CONFIG} cannot be read ({error!r})."
        ) from None
    if (least := min(one for one, _ in found.values())) < 1:
        raise WeightsError(f"{folder / CONFIG}: r is {least}; expected 1 or more.")
    if kind != "LORA" or bias != "none" or asked:
        other = [f"peft_type {kind!r}"] * (kind != "LORA") + [f"bias {bias!r}"] * (bias != "none")
        raise WeightsError(
            f"{folder} is more than a plain LoRA ({', '.join(other + asked)} in {CONFIG}). "
            "Merge it with peft, and load the merged folder."
        )
    power = 0.5 if config.get("use_rslora") else 1.0
    return {module: (rank, alpha / rank**power) for module, (rank, alpha) in found.items()}


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
    modules = {
        module.rsplit(".", 1)[-1]: len(leaves)
        for module, leaves in tables.adapted(edge.config).items()
    }
    alpha = _number(pool.scale * rank)
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
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
