"""Prompt tuning (arXiv 2104.08691): trained vectors instead of embedded tokens.

One soft prompt for all training data, in front of every question; it ignores the system prompt.
The vectors begin as embeddings of a real prompt, at the scale of the edge's own embeddings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.pipeline import load_groups
from lorage_jax.data.templates import encode
from lorage_jax.fields import check_types, require
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.infer.prefixes import Prefix, read_vectors
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.methods.parts import (
    parts_kind,
    read_manifest,
    read_parts,
    read_settings,
    speaking,
    trained_parts,
)
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import Leaf
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import queries_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.room import check_room
from lorage_jax.train.step import Loss

KIND = parts_kind("prompt_tuning", "a soft prompt")


@dataclass(frozen=True)
class PromptTuningSettings:
    """Settings of prompt tuning, which needs at least 100 times a LoRA's learning rate."""

    vectors: int = 100  # M
    text: str | None = None  # where the vectors begin; None: the first system prompt of the data

    def __post_init__(self):
        check_types(self)
        require(self.vectors >= 1, f"vectors is {self.vectors}; expected 1 or more.")
        require(self.text is None or bool(self.text.strip()), "text is empty; leave it out.")


@register
@dataclass(frozen=True, eq=False)
class PromptTuning(Method, Trainable):
    """The edge after a trained soft prompt, which it reads once."""

    name: ClassVar[str] = "prompt_tuning"
    what: ClassVar[str] = "a trained soft prompt in front of the bare question"
    mergeable: ClassVar[bool] = False
    result: ClassVar[str] = "prompt_tuning"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    settings: ClassVar[type | None] = PromptTuningSettings

    edge: Model
    vectors: Float[Array, "M D"]

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> PromptTuning:
        values = read_manifest(KIND, source, edge)
        settings = read_settings(PromptTuningSettings, values, source)
        assert source is not None
        parts = read_parts(source, _leaves(settings, edge.config))
        return cls(speaking(edge, values), parts["prompt"])

    @functools.cached_property
    def prefix(self) -> Prefix:
        """The soft prompt as the edge has read it."""
        return read_vectors(self.edge, self.vectors)

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        facts = {"prefix_slots": self.prefix.slots}
        return [Conditioning(prefix=self.prefix, facts=facts) for _ in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(edge.replace(template=self.edge.template), prefixes=[self.prefix])

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        settings, edge = settings_of(cls, config), models["edge"]
        check_room(config, edge, slots=settings.vectors)
        decoder = Decoder(edge, remat=config.remat, layout=layout)

        def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
            prompt = trained["prompt"][None]
            edge = frozen["edge"]
            return Loss(queries_nll(decoder, edge, micro.queries, None, prefix=prompt)[0])

        return Training(_leaves(settings, edge), loss)

    @classmethod
    def begin(
        cls, config: ExperimentConfig, models: Mapping[str, Model]
    ) -> tuple[Any, Any, str] | None:
        super().begin(config, models)
        settings, edge = settings_of(cls, config), models["edge"]
        ids = first_ids(config, edge, settings.text, settings.vectors)
        table = np.asarray(edge.params["embed"][np.asarray(ids)], np.float32)
        trained = {"prompt": jnp.asarray(table * edge.config.embedding_scale)}
        return trained, {}, fingerprint_arrays({"prompt": np.asarray(trained["prompt"])})

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        return trained_parts(KIND, config, settings_of(cls, config), models, trained)


def _leaves(settings: PromptTuningSettings, edge: ModelConfig) -> dict[str, Leaf]:
    return {"prompt": Leaf((settings.vectors, edge.width), ("rank", "embed"), "unit")}


def first_ids(config: ExperimentConfig, edge: Model, text: str | None, count: int) -> list[int]:
    """`count` token ids of a text, by default the data's first system prompt, over and over."""
    if text is None:
        group: Any = load_groups(config.data, config.seed)[0]
        text = group.system
    ids = encode(edge.tokenizer, str(text), bos=False)
    return [ids[i % len(ids)] for i in range(count)]
