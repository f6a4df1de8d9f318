"""The common part of LoRAMoE and MixLoRA: experts beside the edge, chosen per token, unmerged."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.data.templates import Template
from lorage_jax.fields import require
from lorage_jax.files.journal import request_key
from lorage_jax.files.manifest import Kind
from lorage_jax.methods.method import Conditioning, Method, Placement, beside
from lorage_jax.methods.parts import (
    read_manifest,
    read_parts,
    read_settings,
    speaking,
    trained_parts,
)
from lorage_jax.models.decoder import Decoder, Output
from lorage_jax.models.experts import Routed
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import queries_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.room import check_room
from lorage_jax.train.step import Loss, LossFn

Sums = dict[str, dict[str, Float[Array, "L B E"]]]  # `Output.routing`


@dataclass(frozen=True, eq=False)
class RoutedMethod(Method, Trainable):
    """A method whose experts are chosen by routers in the layers.

    Attributes:
        pool: the trained experts and routers.
        turns: the template of the training; None for an edge without a tokenizer.
        edge_sees_prompt: as in training.
    """

    kind: ClassVar[Kind]
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    mergeable: ClassVar[bool] = False

    pool: Routed
    turns: Template | None
    edge_sees_prompt: bool = False

    @classmethod
    @abstractmethod
    def leaves(cls, edge: ModelConfig, settings: Any) -> dict[str, Any]:
        """The trained parts."""

    @classmethod
    @abstractmethod
    def first(cls, edge: ModelConfig, settings: Any, key: jax.Array) -> dict[str, Any]:
        """Fresh trained parts."""

    @classmethod
    @abstractmethod
    def routed(cls, trained: Any, settings: Any, identity: str = "") -> Routed:
        """The trained parts as the decoder takes them."""

    @classmethod
    @abstractmethod
    def balance(
        cls,
        settings: Any,
        sums: Sums,
        tokens: Float[Array, "B"],
        sources: Int[Array, "B"] | None = None,
    ) -> Float[Array, ""]:
        """The term of the loss that balances the experts, with its weight.

        `sums` and `tokens` are over the real slots of each row, and 0 for rows that only fill up a
        batch; `sources` are the numbers of the rows' sources, if the batch has them.
        """

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Self:
        values = read_manifest(cls.kind, source, edge)
        assert source is not None and cls.settings is not None
        settings: Any = read_settings(cls.settings, values, source)
        trained = read_parts(source, cls.leaves(edge.config, settings))
        # Answers depend on scale and top K, too, which are no arrays.
        identity = request_key(
            values["fingerprint"], json.dumps(values["settings"], sort_keys=True)
        )
        turns = speaking(edge, values).template
        return cls(cls.routed(trained, settings, identity), turns, settings.prompt == "in_context")

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        if self.edge_sees_prompt:
            return [Conditioning(context=prompt) for prompt in prompts]
        return [Conditioning()] * len(prompts)

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        """The edge with the experts beside it: they cannot be merged."""
        return Placement(edge.replace(template=self.turns), pool=beside(self.pool, edge))

    @classmethod
    def edge_reads_prompt(cls, config: ExperimentConfig) -> bool:
        return settings_of(cls, config).prompt == "in_context"

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        edge, settings = models["edge"], settings_of(cls, config)
        check_room(config, edge, prompt=settings.prompt == "in_context")
        return Training(
            cls.leaves(edge, settings),
            cls._loss(config, settings, edge, layout),
            new=lambda frozen, key: (cls.first(edge, settings, key), {}),
        )

    @classmethod
    def _loss(
        cls, config: ExperimentConfig, settings: Any, edge: ModelConfig, layout: Layout
    ) -> LossFn:
        decoder = Decoder(edge, remat=config.remat, dropout=settings.dropout, layout=layout)

        def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
            pool = cls.routed(trained, settings)
            nll, outputs = queries_nll(
                decoder, frozen["edge"], micro.queries, key, pool=pool, routing=True
            )
            sums, tokens = _all_rows(micro, outputs)
            penalty = cls.balance(settings, sums, tokens, _row_sources(micro))
            return Loss(
                nll, statistics, penalty, {"balance": penalty, **_shares(pool, sums, tokens)}
            )

        return loss

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        return trained_parts(cls.kind, config, settings_of(cls, config), models, trained)


def _all_rows(micro: Batch, outputs: Sequence[Output]) -> tuple[Sums, Float[Array, "B"]]:
    """The routers' sums of the rows of all chunks, and the real slots of each row.

    Both are 0 for rows without targets, which only fill up the batch.
    """
    masks = [rows.mask[:, :-1] & _asked(rows)[:, None] for rows in micro.queries]
    tokens = jnp.concatenate([jnp.sum(mask, axis=1, dtype=jnp.float32) for mask in masks])
    found = [one.routing for one in outputs if one.routing is not None]
    sums = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *found)
    return jax.tree.map(lambda one: jnp.where(tokens[:, None] > 0, one, 0.0), sums), tokens


def _asked(rows: Rows) -> Bool[Array, "B"]:
    """True for rows with targets."""
    assert rows.loss_mask is not None
    return jnp.any(rows.loss_mask, axis=1)


def _row_sources(micro: Batch) -> Int[Array, "B"] | None:
    """The number of each row's source; None if the batch has none."""
    if not micro.sources:
        return None
    pairs = zip(micro.queries, micro.sources, strict=True)
    return jnp.concatenate(
        [jnp.repeat(one[:, 0], rows.tokens.shape[0] // one.shape[0]) for rows, one in pairs]
    )


def _shares(pool: Routed, sums: Sums, tokens: Float[Array, "B"]) -> dict[str, Float[Array, "L E"]]:
    """For the curves: the mean probability of each expert and, with a top K, its share of tokens.

    Means over the routers of a layer; nothing for a single expert.
    """
    count = next(iter(sums.values()))["kept"].shape[-1]
    parts = {"gate_mass": "probability"} | ({} if pool.top_k is None else {"usage": "kept"})
    return {
        name: sum(jnp.sum(one[part], axis=1) for one in sums.values()) / len(sums) / jnp.sum(tokens)
        for name, part in parts.items()
        if count > 1
    }


def check_numbers(settings: Any) -> None:
    """Raises ConfigError for numbers that settings of either method may not have."""
    for name in ("experts", "rank"):
        value = getattr(settings, name)
        require(value >= 1, f"{name} is {value}; expected 1 or more.")
    rate = settings.dropout
    require(0 <= rate < 1, f"dropout is {rate}; expected 0 <= dropout < 1.")
    require(settings.balance >= 0, f"balance is {settings.balance}; expected 0 or more.")
    top = getattr(settings, "top_k", None)  # LoRAMoE has none
    require(
        top is None or 1 <= top <= settings.experts,
        f"top_k is {top}; expected 1 to {settings.experts} (experts).",
    )
