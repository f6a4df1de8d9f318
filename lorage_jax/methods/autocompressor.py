"""AutoCompressor (arXiv 2305.14788): the edge compresses the prompt for itself.

It reads the prompt, followed by M trained summary vectors; their states after the final norm are
the soft prompt in front of every question. A prompt in several segments is read one after another,
each after the summaries of those before it and followed by the M vectors; all summaries together
are the soft prompt of the questions. Trained are the vectors and, by default, a LoRA on q, k, v and
o, which is on in all passes; the gradient flows through all of them.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError
from lorage_jax.fields import check_types, require
from lorage_jax.files.journal import request_key
from lorage_jax.files.manifest import Kind
from lorage_jax.generator import loras
from lorage_jax.generator.peft import merge_loras
from lorage_jax.generator.reading import prompt_ids
from lorage_jax.hf.peft_weights import Lora
from lorage_jax.infer.prefixes import Prefix, read_suffix, read_vectors
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.methods.parts import (
    parts_kind,
    read_manifest,
    read_parts,
    read_settings,
    recorded_kind,
    speaking,
    trained_parts,
)
from lorage_jax.models.decoder import Decoder, Output
from lorage_jax.models.leaves import Leaf, initialise
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import chunk_nll, gathered_head
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.room import check_room, check_unpacked
from lorage_jax.train.step import Loss, LossFn

LINEARS = ("q", "k", "v", "o")


@dataclass(frozen=True)
class CompressorSettings:
    """Settings of a compressor; None means the value of `config.generator`."""

    vectors: int = 16  # M; the paper's 50 are more than a short prompt has tokens
    lora: bool = True  # on q, k, v and o of the edge; without, only the vectors are trained
    rank: int | None = None
    alpha: float | None = None  # scales the LoRA by alpha / rank
    dropout: float | None = None  # on the inputs of the LoRA
    segments: int = 1  # s: parts of equal length that a prompt is read in; M vectors for each

    def __post_init__(self):
        check_types(self)
        require(self.vectors >= 1, f"vectors is {self.vectors}; expected 1 or more.")
        require(self.segments >= 1, f"segments is {self.segments}; expected 1 or more.")
        require(self.rank is None or self.rank >= 1, f"rank is {self.rank}; expected 1 or more.")
        rate = self.dropout
        require(rate is None or 0 <= rate < 1, f"dropout is {rate}; expected 0 <= dropout < 1.")

    def filled(self, config: ExperimentConfig) -> CompressorSettings:
        """The same with every default filled in."""
        usual = config.generator
        return dataclasses.replace(
            self,
            rank=usual.rank if self.rank is None else self.rank,
            alpha=usual.alpha if self.alpha is None else self.alpha,
            dropout=usual.dropout if self.dropout is None else self.dropout,
        )

    @property
    def scale(self) -> float:
        """alpha / rank, of settings without None."""
        assert self.alpha is not None and self.rank is not None
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class Compressor(Method, Trainable):
    """An edge that reads a prompt once, with vectors after it, and keeps what these become."""

    kind: ClassVar[Kind]
    mergeable: ClassVar[bool] = False
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    settings: ClassVar[type | None] = CompressorSettings
    later: ClassVar[Mapping[str, Any]] = {"segments": 1}
    keys: ClassVar[bool] = False  # True if `lead` needs the keys and values of the prompts

    edge: Model  # with the LoRA merged
    updates: Lora | None
    vectors: Float[Array, "M D"]
    template: TemplateKind
    identity: str
    segments: int = 1

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Self:
        values = read_manifest(cls.kind, source, edge)
        assert source is not None
        settings = read_settings(CompressorSettings, values, source)
        parts = read_parts(source, leaves(settings, edge.config))
        identity, updates, whole = values["fingerprint"], None, speaking(edge, values)
        if settings.lora:
            layers = loras.layer_updates(edge.config, parts["lora"], settings.scale)
            updates = Lora(layers, [], identity)
            whole = merge_loras(whole, [updates], [1.0])
        turns = recorded_kind(values)
        return cls(whole, updates, parts["summary"], turns, identity, settings.segments)

    @classmethod
    def prompt_reader(cls) -> str | None:
        return "edge"

    @classmethod
    @abstractmethod
    def first(cls, edge: ModelConfig, table: Float[Array, "V D"]) -> Float[Array, "D"]:
        """The float32 embedding that every vector begins at, of the edge's table."""

    @classmethod
    @abstractmethod
    def lead(cls, outputs: Sequence[Output], count: int) -> dict[str, Any]:
        """The front of what follows, in training: `prefix` or `past` of the decoder.

        `outputs` are those of the segments so far, each with `count` vectors as its last slots.
        """

    @classmethod
    @abstractmethod
    def kept(cls, edge: Model, prefix: Prefix, states: Float[np.ndarray, "sM D"]) -> Prefix:
        """The front of questions in use.

        It comes from the vectors' keys and values after the last segment, and from their states
        after all of them.
        """

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Reads each distinct prompt once. Raises DataError if one does not fit the context."""
        distinct = list(dict.fromkeys(prompts))
        turns, slots = self.template.on(self.edge.tokenizer), len(self.vectors) * self.segments
        rows = prompt_ids(self.edge, turns, distinct, slots + 1)
        ready, several = {}, () if self.segments == 1 else (self.segments,)
        for prompt, ids, (prefix, one) in zip(distinct, rows, self._read(rows), strict=True):
            tokens = np.asarray(ids, np.int32).tobytes()
            name = request_key(self.name, self.identity, tokens, *several)
            kept = dataclasses.replace(self.kept(self.edge, prefix, one), identity=name)
            facts = {"prefix_slots": kept.slots, "prompt_tokens": len(ids)}
            ready[prompt] = Conditioning(prefix=kept, facts=facts)
        return [ready[prompt] for prompt in prompts]

    def _read(self, rows: Sequence[list[int]]) -> list[tuple[Prefix, Float[np.ndarray, "sM D"]]]:
        """Reads each prompt of token ids in s <= `segments` segments: what `kept` needs of it."""
        parts = [_parts(ids, self.segments) for ids in rows]
        read: list[Any] = [None] * len(rows)
        for i in range(self.segments):
            at = [row for row, own in enumerate(parts) if len(own) > i]
            if not at:
                break
            fronts = np.stack([read[row][1] for row in at]) if i else None
            texts = [parts[row][i] for row in at]
            found = read_suffix(self.edge, texts, self.vectors, fronts)
            for row, prefix, states in zip(at, *found, strict=True):
                before = () if i == 0 else (read[row][1],)
                read[row] = prefix, np.concatenate([*before, states])
        return read

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        """Raises ConfigError if a row has no prefix, as `prepare` gives it."""
        prefixes = [row.prefix for row in rows if row.prefix is not None]
        if len(prefixes) < len(rows):
            raise ConfigError(
                f"a row has no prefix; expected the conditionings of {self.name}.prepare."
            )
        edge = edge.replace(template=self.edge.template)
        if self.updates is not None:
            edge = merge_loras(edge, [self.updates], [1.0])
        return Placement(edge, prefixes=prefixes)

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        settings, edge = settings_of(cls, config).filled(config), models["edge"]
        check_unpacked(config, "a compressed prompt stands in front of a whole row")
        check_room(config, edge, prompt=True, slots=settings.vectors * settings.segments)
        parts = leaves(settings, edge)

        def new(frozen: Any, key: jax.Array) -> tuple[Any, Any]:
            trained = initialise(parts, key)
            row = cls.first(edge, frozen["edge"]["embed"]) * edge.embedding_scale
            return trained | {"summary": jnp.broadcast_to(row, trained["summary"].shape)}, {}

        return Training(parts, cls._loss(config, settings, edge, layout), new=new)

    @classmethod
    def _loss(
        cls,
        config: ExperimentConfig,
        settings: CompressorSettings,
        edge: ModelConfig,
        layout: Layout,
    ) -> LossFn:
        """The edge's loss on the queries after what it keeps of the prompts."""
        dropout = settings.dropout if settings.lora and settings.dropout else 0.0
        decoder = Decoder(edge, remat=config.remat, dropout=dropout, layout=layout)
        passes = settings.segments + 1  # the last one is that of the questions

        def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
            params, total = frozen["edge"], jnp.zeros((), jnp.float32)
            head, given = gathered_head(decoder, params), {}
            if settings.lora:
                given = {"adapters": trained["lora"], "adapter_scale": settings.scale}
            for i, (prompts, queries) in enumerate(zip(micro.prompts, micro.queries, strict=True)):
                keys = [None] * passes
                if dropout:
                    keys = list(jax.random.split(jax.random.fold_in(key, i), passes))
                read = functools.partial(
                    decoder.apply,
                    {"params": params},
                    suffix=trained["summary"],
                    head=False,
                    keys=cls.keys,
                    **given,
                )
                front = cls._front(read, prompts, settings, keys[:-1])
                each = queries.tokens.shape[0] // prompts.tokens.shape[0]
                front = _repeated(front, each)
                total += chunk_nll(decoder, params, head, queries, keys[-1], **front, **given)[0]
            return Loss(total)

        return loss

    @classmethod
    def _front(
        cls,
        read: Callable[..., Output],
        prompts: Rows,
        settings: CompressorSettings,
        keys: Sequence[jax.Array | None],
    ) -> dict[str, Any]:
        """The front of the questions of each prompt, whose segments `read` reads in turn."""
        parts, outputs, front = cut(prompts, settings.segments), [], {}
        for part, key in zip(parts, keys, strict=True):
            rngs = {} if key is None else {"dropout": key}
            outputs.append(read(part.tokens, part.mask, rngs=rngs, **front))
            front = cls.lead(outputs, settings.vectors)
        if settings.segments > 1:  # without those of segments that are all padding
            real = jnp.stack([jnp.any(part.mask, axis=1) for part in parts], axis=1)
            front["prefix_mask"] = jnp.repeat(real, settings.vectors, axis=1)
        return front

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        settings = settings_of(cls, config).filled(config)
        return trained_parts(cls.kind, config, settings, models, trained)


@register
@dataclass(frozen=True, eq=False)
class AutoCompressor(Compressor):
    """The states of the summary vectors are the soft prompt of every question."""

    name: ClassVar[str] = "autocompressor"
    what: ClassVar[str] = "the prompt as summary vectors that the edge made itself"
    result: ClassVar[str] = "autocompressor"
    kind: ClassVar[Kind] = parts_kind("autocompressor", "an AutoCompressor")

    @classmethod
    def first(cls, edge: ModelConfig, table: Float[Array, "V D"]) -> Float[Array, "D"]:
        end = edge.eos_ids[0] if edge.eos_ids else edge.pad_id or 0
        return table[end].astype(jnp.float32)

    @classmethod
    def lead(cls, outputs: Sequence[Output], count: int) -> dict[str, Any]:
        summaries = [output.hidden[:, -count:] for output in outputs]
        return {"prefix": jnp.concatenate(summaries, axis=1)}

    @classmethod
    def kept(cls, edge: Model, prefix: Prefix, states: Float[np.ndarray, "sM D"]) -> Prefix:
        return read_vectors(edge, states)


def leaves(settings: CompressorSettings, edge: ModelConfig) -> dict[str, Any]:
    """The vectors and, unless it is switched off, the LoRA; `settings` without None."""
    parts: dict[str, Any] = {"summary": Leaf((settings.vectors, edge.width), ("rank", "embed"))}
    if settings.lora:
        assert settings.rank is not None
        parts["lora"] = loras.lora_leaves(edge, LINEARS, settings.rank)
    return parts


def cut(prompts: Rows, segments: int) -> list[Rows]:
    """Each prompt in parts of equal length, of which the last may be shorter, or padding alone.

    `prompts`, [B, S], are padded on the left, and so are their parts, [B, ceil(S / segments)]. A
    prompt's parts depend on its own tokens alone, not on its padding.
    """
    if segments == 1:
        return [prompts]
    width = prompts.tokens.shape[1]
    columns = jnp.arange(-(-width // segments) - 1, -1, -1)  # counted from the end
    length = jnp.sum(prompts.mask, axis=1, keepdims=True)
    size, parts = -(-length // segments), []
    for i in range(segments):
        end = jnp.minimum((i + 1) * size, length)
        at = jnp.maximum(width - length + end - 1 - columns, 0)
        tokens = jnp.take_along_axis(prompts.tokens, at, axis=1)
        parts.append(Rows(tokens, columns < end - i * size))
    return parts


def _parts(ids: list[int], segments: int) -> list[list[int]]:
    """`cut` of one prompt, without parts that would be empty."""
    size = -(-len(ids) // segments)
    return [ids[begin : begin + size] for begin in range(0, len(ids), size)]


def _repeated(front: dict[str, Any], each: int) -> dict[str, Any]:
    """Each prompt's front, repeated for each of its questions."""

    def repeat(x: Array) -> Array:
        axis = 1 if x.ndim == 5 else 0  # keys and values have their layers in front
        return jnp.repeat(x, each, axis=axis)

    return jax.tree.map(repeat, front)
