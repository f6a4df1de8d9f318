"""A baseline: one LoRA on the edge's FFN for all tasks, trained without prompts.

It is trained on the batches of a generator's run (same config, seed and examples), but without
their prompts: its gain over the bare edge is what can be learnt about the tasks as a whole. The
LoRA is a pool of one expert whose gate is always 1. Its rank, alpha and dropout are those of
`config.generator`, so it has the rank of a LoRA that a generator with `factors` assembles.

Its folder has `lora.safetensors` (the pool's arrays) and `lorage.json` (rank, alpha and the edge's
fingerprint).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.files.manifest import Kind, write_manifest
from lorage_jax.files.outputs import new_folder
from lorage_jax.files.safetensors import read_tensors, save
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import flatten
from lorage_jax.generator.merge import merge
from lorage_jax.generator.pool import expert_leaves
from lorage_jax.methods.method import Conditioning, Method, Placement, beside, register
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import query_nll
from lorage_jax.train.experiment import Trainable, Trained, Training
from lorage_jax.train.step import Loss, LossFn

TENSORS = "lora.safetensors"
LORA = Kind(
    "lorage-lora/1",
    "a LoRA for all tasks",
    "the `lora` folder of a run",
    {"rank": int, "alpha": int | float, "edge": str},
)


@register
@dataclass(frozen=True, eq=False)
class Lora(Method, Trainable):
    """One LoRA for all tasks, merged into the edge; it ignores the prompt."""

    name: ClassVar[str] = "lora"
    what: ClassVar[str] = "one LoRA for all tasks, trained without prompts; the bare question"
    result: ClassVar[str] = "lora"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)

    pool: Pool
    card: Card

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Lora:
        if source is None:
            raise ConfigError("lora needs the folder of a trained LoRA; none was given.")
        return cls(*read_lora(source, edge))

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        return [Conditioning()] * len(prompts)

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(merge(edge, beside(self.pool, edge), self.card))

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        leaves = expert_leaves(models["edge"], 1, config.generator.rank, "per_layer")
        return Training(leaves, lora_loss(config, models["edge"], layout))

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        identity = fingerprint_arrays(flatten(trained))
        write = functools.partial(save_lora, lora=trained, config=config, edge=models["edge"])
        return Trained(identity, write)


def lora_loss(config: ExperimentConfig, edge: ModelConfig, layout: Layout) -> LossFn:
    """The edge's loss on the queries, with the LoRA in every layer and row."""
    dropout = config.generator.dropout
    decoder = Decoder(edge, remat=config.remat, dropout=dropout, layout=layout)
    prompts = config.data.prompts_per_batch // config.optimizer.accumulate

    def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
        gates = jnp.ones((prompts, edge.layers, 1), jnp.float32)
        pool = _pool(trained, config.generator.scale)
        return Loss(query_nll(decoder, frozen["edge"], pool, gates, micro.queries, key))

    return loss


def load_lora(folder: str | Path, edge: Model) -> Model:
    """Loads a LoRA and merges it into the edge.

    Raises WeightsError if it was trained for another edge or the folder is damaged.
    """
    pool, card = read_lora(folder, edge)
    return merge(edge, pool, card)


def read_lora(folder: str | Path, edge: Model) -> tuple[Pool, Card]:
    """Loads a LoRA as a pool of one expert, with the card whose gates are 1 in every layer.

    Raises WeightsError if it was trained for another edge or the folder is damaged.
    """
    folder = Path(folder)
    values = LORA.read(folder)
    if values["edge"] != edge.fingerprint:
        raise WeightsError(
            f"{folder} was trained for the edge model {values['edge'][:19]}..., not for "
            f"{edge.fingerprint[:19]}... ({edge.source}). Load the edge it was trained on."
        )
    leaves = expert_leaves(edge.config, 1, values["rank"], "per_layer")
    shapes = {name: leaf.shape for name, leaf in flatten(leaves).items()}
    arrays = read_tensors(folder / TENSORS, shapes)
    experts = {
        projection: {part: jnp.asarray(arrays[f"{projection}.{part}"]) for part in ("a", "b")}
        for projection in leaves
    }
    identity = fingerprint_arrays(arrays)
    gates = np.ones((edge.config.layers, 1), np.float32)
    kind = TemplateKind.of(values)
    card = Card(gates, identity, edge.fingerprint, {"what": "multitask LoRA", **kind.to_dict()})
    return _pool(experts, values["alpha"] / values["rank"], identity), card


def _pool(lora: dict[str, Any], scale: float, identity: str = "") -> Pool:
    return Pool(lora, "factors", scale, "per_layer", identity)


def save_lora(folder: Path, lora: dict[str, Any], config: ExperimentConfig, edge: Model) -> None:
    """Writes the LoRA's arrays to a folder that `load_lora` reads."""
    with new_folder(folder, overwrite=True) as temporary:
        save(temporary / TENSORS, {k: np.asarray(v) for k, v in flatten(lora).items()}, {})
        values = {
            "format": LORA.format,
            "rank": config.generator.rank,
            "alpha": config.generator.alpha,
            **({} if edge.template is None else edge.template.kind.to_dict()),
            "edge": edge.fingerprint,
            "about": {"steps": config.steps, "seed": config.seed, "dtype": config.dtype},
        }
        write_manifest(temporary, values)
