"""Trained LoRAs in folders, as the experts of one pool; a card combines or picks them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import WeightsError
from lorage_jax.fields import home_path
from lorage_jax.generator.card import Card
from lorage_jax.generator.loras import stacked
from lorage_jax.generator.peft import check_base, own_turns, trained_turns
from lorage_jax.hf.peft import CONFIG
from lorage_jax.hf.peft_weights import read_lora
from lorage_jax.methods.cards import card_for
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model


@dataclass(frozen=True)
class TrainedLoras:
    """LoRAs of one edge, with their folders' names in the order of the pool's experts.

    The edge is in the turns of their training.
    """

    edge: Model
    pool: Pool
    names: tuple[str, ...]


def read_loras(source: Path, edge: Model) -> TrainedLoras:
    """The LoRAs of all PEFT folders in `source`, or one folder below.

    Raises WeightsError if there are none, if they do not fit the edge or its tokenizer, or have
    different turns.
    """
    source = home_path(source)
    found = sorted(
        {*source.glob(CONFIG), *source.glob(f"*/{CONFIG}"), *source.glob(f"*/*/{CONFIG}")}
    )
    folders = [file.parent for file in found]
    if not folders:
        raise WeightsError(f"{source} holds no PEFT folders; expected results of `lorage train`.")
    for folder in folders:
        check_base(folder, edge)
    loras = {str(folder.relative_to(source)): read_lora(folder, edge) for folder in folders}
    own = {folder: kind for folder in folders if (kind := own_turns(folder)) is not None}
    kinds = set(own.values())
    if len(kinds) > 1:
        raise WeightsError(
            f"the LoRAs in {source} were trained in different turns "
            f"({', '.join(sorted(map(str, kinds)))}); combine those of one kind."
        )
    default = TemplateKind() if edge.template is None else edge.template.kind
    if edge.tokenizer is not None:
        for folder, kind in own.items():
            trained_turns(folder, kind, edge)
        edge = edge.replace(template=next(iter(kinds), default).on(edge.tokenizer))
    return TrainedLoras(edge, stacked(edge.config, list(loras.values())), tuple(loras))


def combination(edge: Model, pool: Pool, weights: np.ndarray) -> Card:
    """A card with the same weights [n] in every layer; the edge is in the LoRAs' turns."""
    return card_for(edge, equal_gates(edge, weights), pool, what="a combination of LoRAs")


def equal_gates(edge: Model, weights: np.ndarray) -> np.ndarray:
    """Gates [L, n] with the same weights [n] in every layer."""
    return np.tile(np.asarray(weights, np.float32), (edge.config.layers, 1))
