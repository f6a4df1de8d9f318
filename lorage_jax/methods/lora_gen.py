"""LoRA-Gen (arXiv 2506.11638): the cloud reads the prompt once, its card specialises the edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import check_types, expand_home, learnt_from, require
from lorage_jax.files.journal import Journal, request_key
from lorage_jax.generator.card import Card, card_from_dict
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.store import load_generator
from lorage_jax.methods.cards import place_cards
from lorage_jax.methods.lora import Lora, merged_lora
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.models.model import Model
from lorage_jax.progress import progress
from lorage_jax.sharding import Layout
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.generator import begun_generator, finished_generator, generator_training

BATCH_ROWS = 8  # prompts per cloud pass


@dataclass(frozen=True)
class LoraGenSettings:
    """Settings of a generator's training.

    With `distilled` above 0, the edge without the prompt also learns from a teacher that has the
    prompt in its context: a token's loss is (1 - distilled) * cross entropy + distilled *
    KL(teacher || edge). The teacher is the edge itself, or with `teacher`, the folder of a LoRA
    that was trained with `LoraSettings(prompt="in_context")`, the edge with that LoRA.
    """

    distilled: float = 0.0
    teacher: str = learnt_from()

    def __post_init__(self):
        check_types(self)
        expand_home(self, "teacher")
        require(
            0 <= self.distilled <= 1,
            f"distilled is {self.distilled}; expected 0 to 1, both included.",
        )
        require(
            self.distilled > 0 or not self.teacher,
            f"teacher is {self.teacher}, but distilled is 0, so that nothing is learnt from it. "
            "Raise distilled, or leave teacher out.",
        )


@register
@dataclass(frozen=True, eq=False)
class LoraGen(Method, Trainable):
    """Specialises the edge with a trained generator.

    Attributes:
        generator: its cloud reads the prompts, its pool specialises the edge.
        journal: finished cards, so that an interrupted evaluation continues where it stopped.
        batch_rows: prompts per cloud pass.
        cut: shorten a prompt that exceeds the cloud's context, instead of raising DataError.
    """

    name: ClassVar[str] = "lora_gen"
    what: ClassVar[str] = "the prompt merged into the edge's weights, the bare question asked"
    result: ClassVar[str] = "generator"
    frozen: ClassVar[tuple[str, ...]] = ("cloud", "edge")
    settings: ClassVar[type | None] = LoraGenSettings
    movable: ClassVar[tuple[str, ...]] = ("teacher",)

    generator: Generator
    journal: Journal = field(default_factory=Journal)
    batch_rows: int = BATCH_ROWS
    cut: bool = False

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> LoraGen:
        if source is None:
            raise ConfigError("lora_gen needs the folder of a generator; none was given.")
        return cls(load_generator(source))

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Computes the cards. Their facts are cloud_tokens and, with `cut`, cloud_truncated."""
        facts: list[dict[str, Any]] = [{} for _ in prompts]
        if self.cut:
            fitted = [fit_cloud(self.generator, prompt) for prompt in prompts]
            prompts = [prompt for prompt, _ in fitted]
            facts = [{"cloud_truncated": truncated} for _, truncated in fitted]
        cards = journaled_cards(self.generator, prompts, self.batch_rows, self.journal)
        return [
            Conditioning(card=card, facts={"cloud_tokens": card.about["cloud_tokens"], **fact})
            for card, fact in zip(cards, facts, strict=True)
        ]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return place_cards(edge, self.generator.pool, rows, self.name)

    def trained_values(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self.generator.trained))

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        return generator_training(config, models, layout, settings_of(cls, config).distilled)

    @classmethod
    def has_teacher(cls, config: ExperimentConfig) -> bool:
        return settings_of(cls, config).distilled > 0

    @classmethod
    def teacher(cls, config: ExperimentConfig, edge: Model) -> Model | None:
        folder = settings_of(cls, config).teacher
        return load_teacher(folder, edge) if folder else None

    @classmethod
    def begin(
        cls, config: ExperimentConfig, models: Mapping[str, Model]
    ) -> tuple[Any, Any, str] | None:
        return begun_generator(config, models)

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        share = settings_of(cls, config).distilled
        facts = {"distilled": share} if share else {}
        return finished_generator(config, models, trained, statistics, facts)


def load_teacher(folder: str, edge: Model) -> Model:
    """The edge with the LoRA of a teacher merged.

    Raises ConfigError unless it was trained for this edge, with the prompt in its context.
    """
    try:
        found = Lora.load(edge, Path(folder))
    except WeightsError as error:
        raise ConfigError(f"settings.teacher cannot be used: {error}") from None
    if not found.edge_sees_prompt:
        raise ConfigError(
            f"settings.teacher is {folder}, a LoRA that was trained without the prompt, so that it "
            'has nothing to teach. Train it with LoraSettings(prompt="in_context").'
        )
    return merged_lora(edge, found.lora, found.template)


def journaled_cards(
    generator: Generator, prompts: Sequence[str], batch_rows: int, journal: Journal
) -> list[Card]:
    """The cards of many prompts; each distinct prompt is read once.

    They are kept in the journal, because the key of an answer contains its gates, and the last bits
    of gates depend on the batch they were computed in: a resumed run must find the same gates.
    """
    keys = [request_key("card", generator.fingerprint, prompt) for prompt in prompts]
    missing = {key: p for key, p in zip(keys, prompts, strict=True) if journal.get(key) is None}
    todo = sorted(missing, key=lambda key: len(missing[key]))
    batches = [todo[start : start + batch_rows] for start in range(0, len(todo), batch_rows)]
    with progress("reading prompts", len(todo)) as advance, journal.exchanged():
        for batch in journal.part(batches):
            made = specialize(generator, [missing[key] for key in batch])
            journal.add({key: card.to_dict() for key, card in zip(batch, made, strict=True)})
            advance(len(batch))
    cards = {key: card_from_dict(journal.get(key), "the journal's card") for key in set(keys)}
    kept = {"pool": generator.pool, "chat_template": generator.chat_templates.get("edge")}
    return [dataclasses.replace(cards[key], **kept) for key in keys]


def fit_cloud(generator: Generator, prompt: str) -> tuple[str, bool]:
    """The part of a prompt that fits into the cloud's context, and whether it was cut."""
    room = generator.cloud.config.max_positions - generator.edge.layers
    fitting = prompt
    while fitting.strip():
        length = len(generator.reads.read(fitting))
        if length <= room:
            break
        fitting = fitting[: len(fitting) * room // length]
    return fitting, fitting != prompt
