"""Few-case tuning: a card's LoRA, trained further on a few solved examples of its task.

The start is what a generator made of a prompt. With `train` factors, the assembled A and B are
trained; with gates, only the logits of the card's open gates. Either way the result is an adapter,
a PEFT folder, and no card any more: the generator's experts stay as they are. The data of the run
are the examples; the prompt is not read. Give the run few steps, and a learning rate below that of
the generator's training: both factors move at once, as B is not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError
from lorage_jax.fields import check_types, expand_home, learnt_from, require
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.generator.card import Card, load_card
from lorage_jax.generator.loras import Updates, lora_leaves
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.generator.store import load_pool
from lorage_jax.generator.trees import flatten
from lorage_jax.methods.lora import Lora, Shape, about, lora_loss, save_lora
from lorage_jax.methods.method import register
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import Leaf
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import query_nll
from lorage_jax.train.experiment import Trained, Training, settings_of
from lorage_jax.train.room import check_room
from lorage_jax.train.step import Loss, LossFn

CLOSED = -1e30  # the logit of a gate that the card has closed


@dataclass(frozen=True)
class FewCaseSettings:
    """Settings of the method `few_case`."""

    generator: str = learnt_from()  # folder of the generator that made the card
    card: str = learnt_from()  # the card's file, or a folder with one
    train: Literal["factors", "gates"] = "factors"
    dropout: float = 0.0

    def __post_init__(self):
        check_types(self)
        expand_home(self, "generator", "card")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; expected 0 <= dropout < 1.")


@register
@dataclass(frozen=True, eq=False)
class FewCase(Lora):
    """A card's LoRA after training on a few solved examples, merged into the edge."""

    name: ClassVar[str] = "few_case"
    what: ClassVar[str] = "a card's LoRA, trained further on a few solved examples of its task"
    result: ClassVar[str] = "few_case"
    settings: ClassVar[type | None] = FewCaseSettings

    @classmethod
    def edge_reads_prompt(cls, config: ExperimentConfig) -> bool:
        return False

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        edge, settings = models["edge"], settings_of(cls, config)
        check_room(config, edge)
        pool, card = _start(settings)
        if card.gates.shape != (edge.layers, pool.count):
            raise ConfigError(
                f"the card has gates {card.gates.shape}; expected {(edge.layers, pool.count)} for "
                "this edge and generator."
            )
        if settings.train == "factors":
            shape = _shape(edge, pool, card, settings)
            leaves = lora_leaves(edge, shape.targets, shape.rank)
            return Training(leaves, lora_loss(config, shape, edge, layout), shared=False)
        experts = jax.tree.map(_frozen_leaf, pool.experts)
        gates = Leaf(card.gates.shape, ("layers", "experts"), "zeros")
        loss = _gates_loss(config, settings, pool, edge, layout)
        statistics = {"experts": experts, "kept": gates}
        return Training({"logits": gates}, loss, statistics, shared=False)

    @classmethod
    def begin(
        cls, config: ExperimentConfig, models: Mapping[str, Model]
    ) -> tuple[Any, Any, str] | None:
        """The card's LoRA, or its gates and the generator's experts.

        Raises WeightsError for a card of another generator or edge, and ConfigError for one that
        was made in other turns than those of the run.
        """
        super().begin(config, models)  # refuses `init`
        settings = settings_of(cls, config)
        pool, card = _start(settings)
        card.check(models["edge"], pool)
        if config.data.template not in ("auto", card.template.name):
            raise ConfigError(
                f"the card was made in {card.template.name} turns, but data.template is "
                f"{config.data.template}. Give this run the same."
            )
        identity = fingerprint_arrays({"gates": card.gates}) + pool.generator
        if settings.train == "gates":
            kept = (card.gates != 0).astype(np.float32)
            logits = np.log(np.where(kept > 0, card.gates, 1.0)).astype(np.float32)
            return {"logits": logits}, {"experts": pool.experts, "kept": kept}, identity
        return _assembled(pool, card.gates), {}, identity

    @classmethod
    def begins_in(cls, config: ExperimentConfig) -> TemplateKind:
        return load_card(settings_of(cls, config).card).template

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        edge, settings = models["edge"], settings_of(cls, config)
        pool, card = _start(settings)
        shape, factors = _shape(edge.config, pool, card, settings), trained
        if settings.train == "gates":
            gates = _gates(jnp.asarray(trained["logits"]), jnp.asarray(statistics["kept"]))
            factors = _assembled(pool, np.asarray(gates))
        facts = about(config, "none") | {"card": card.to_dict()}

        def write(folder: Path) -> None:
            save_lora(folder, edge, shape, factors, {}, facts)

        return Trained(fingerprint_arrays(flatten(jax.tree.map(np.asarray, factors))), write)


def _start(settings: FewCaseSettings) -> tuple[Pool, Card]:
    if not settings.generator or not settings.card:
        raise ConfigError(
            "few_case begins with a card: expected settings=FewCaseSettings(generator=FOLDER, "
            "card=FILE)."
        )
    return load_pool(settings.generator), load_card(settings.card)


def _shape(edge: ModelConfig, pool: Pool, card: Card, settings: FewCaseSettings) -> Shape:
    """The card's LoRA; its B holds the scale, so alpha equals the rank."""
    rank = assembled_rank(pool, card.gates)
    return Shape("lora", edge.projections, rank, float(rank), settings.dropout)


def _assembled(pool: Pool, gates: np.ndarray) -> Updates:
    factors = assemble(pool, jnp.asarray(gates), assembled_rank(pool, gates))
    return {
        name: {"a": np.asarray(a)[:, None], "b": np.asarray(b)[:, None]}
        for name, (a, b) in factors.items()
    }


def _frozen_leaf(array: Array) -> Leaf:
    return Leaf(array.shape, ("rank",) * array.ndim, "zeros")


def _gates(logits: Float[Array, "L E"], kept: Float[Array, "L E"]) -> Float[Array, "L E"]:
    return jax.nn.softmax(jnp.where(kept > 0, logits, CLOSED), axis=-1)


def _gates_loss(
    config: ExperimentConfig,
    settings: FewCaseSettings,
    pool: Pool,
    edge: ModelConfig,
    layout: Layout,
) -> LossFn:
    """The edge's loss under gates that are trained; the experts are not."""
    decoder = Decoder(edge, remat=config.remat, dropout=settings.dropout, layout=layout)
    prompts = config.data.prompts_per_batch // config.optimizer.accumulate

    def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
        gates = _gates(trained["logits"], statistics["kept"])
        rows = jnp.broadcast_to(gates, (prompts, *gates.shape))
        experts = pool.replace(experts=statistics["experts"])
        nll = query_nll(decoder, frozen["edge"], experts, rows, micro.queries, key)
        return Loss(nll, statistics)

    return loss
