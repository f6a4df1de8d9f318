"""A generator without a language model: a small reader feeds the router and pool of LoRA-Gen.

The control for what the cloud contributes. The reader gives one vector per prompt
(`generator.readers`); with a trained vector added for every layer of the edge, it takes the place
of the meta tokens' hidden states. Router, pool, losses and cards are those of LoRA-Gen, under the
switches of `config.generator`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.buckets import bucket, left_pad
from lorage_jax.config import ExperimentConfig, GeneratorConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.pipeline import Batches
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import check_types, expand_home, from_dict, learnt_from, require, to_dict
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.generator.readers import (
    Encoder,
    Reader,
    bag,
    encoded,
    encoder_leaves,
    projected,
    projection_leaves,
)
from lorage_jax.generator.reading import prompt_ids
from lorage_jax.generator.router import route, router_leaves, statistics_leaves
from lorage_jax.generator.sentences import SentenceEncoder, load_encoder, vector_width
from lorage_jax.methods.cards import card_for, place_cards
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
from lorage_jax.models.bits import program_params
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import Leaf, initialise
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import query_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.losses import balance
from lorage_jax.train.room import check_unpacked
from lorage_jax.train.step import Loss, per_prompt

KIND = parts_kind("no_llm", "a generator without a language model")
BATCH_ROWS = 8  # prompts that are read at once
LAYER_STD = 0.02  # of the layers' vectors at the start


@dataclass(frozen=True)
class NoLlmSettings:
    """Settings of a generator without a language model (readers: see `generator.readers`)."""

    reader: Reader = "bag"
    folder: str = learnt_from()  # of the frozen encoder, with the reader `sentence`

    def __post_init__(self):
        check_types(self)
        expand_home(self, "folder")
        require(
            (self.reader == "sentence") == bool(self.folder),
            f"reader is {self.reader} and folder is {self.folder!r}; the reader sentence needs the "
            "folder of a sentence encoder, the others need none.",
        )


@register
@dataclass(frozen=True, eq=False)
class NoLlm(Method, Trainable):
    """Specialises the edge by cards that a small reader of prompts chose."""

    name: ClassVar[str] = "no_llm"
    what: ClassVar[str] = "a card from a small reader instead of the cloud, the bare question"
    result: ClassVar[str] = "no_llm"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    settings: ClassVar[type | None] = NoLlmSettings

    edge: Model
    config: GeneratorConfig
    reader: Reader
    parts: dict[str, Any]  # `trained` and `statistics`
    pool: Pool
    template: TemplateKind
    encoder: SentenceEncoder | None = None

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> NoLlm:
        values = read_manifest(KIND, source, edge)
        assert source is not None
        settings = read_settings(NoLlmSettings, values, source)
        try:
            config = from_dict(GeneratorConfig, values["generator"])
        except (ConfigError, KeyError) as error:
            raise WeightsError(f"{source}/lorage.json is damaged: {error}") from None
        leaves = {
            "trained": _leaves(config, settings, edge.config),
            "statistics": statistics_leaves(config, edge.config.layers),
        }
        parts = read_parts(source, leaves)
        pool = make_pool(parts["trained"]["pool"], config, values["fingerprint"])
        kind, encoder = recorded_kind(values), None
        if settings.reader == "sentence":
            encoder = load_encoder(settings.folder)
            if encoder.fingerprint != values.get("encoder"):
                raise WeightsError(
                    f"{source} was trained with another sentence encoder than the one that is in "
                    f"{settings.folder} now. Put the old one there."
                )
        return cls(speaking(edge, values), config, settings.reader, parts, pool, kind, encoder)

    @classmethod
    def prompt_reader(cls) -> str | None:
        return "edge"

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """A card per distinct prompt. Raises DataError for an empty prompt.

        With a sentence encoder, the fact `reader_truncated` says if it read only a part.
        """
        distinct = list(dict.fromkeys(prompts))
        rows = prompt_ids(self.edge, self.template.on(self.edge.tokenizer), distinct, 0)
        table = program_params(self.edge.params)["embed"]
        made = {}
        for begin in range(0, len(rows), BATCH_ROWS):
            texts = distinct[begin : begin + BATCH_ROWS]
            batch = rows[begin : begin + BATCH_ROWS]
            tokens, mask = left_pad(batch, bucket(max(map(len, batch))))
            vectors = None if self.encoder is None else self.encoder(texts)
            kind = (self.config, self.reader, self.edge.config)
            gates = _compiled(*kind, table, self.parts, tokens, mask, vectors)
            for prompt, own in zip(texts, np.asarray(gates, np.float32), strict=False):
                card = card_for(self.edge, own, self.pool)
                made[prompt] = Conditioning(card=card, facts=self._facts(prompt))
        return [made[prompt] for prompt in prompts]

    def _facts(self, prompt: str) -> dict[str, Any]:
        if self.encoder is None:
            return {}
        return {"reader_truncated": self.encoder.tokens(prompt) > self.encoder.pooling.longest}

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return place_cards(edge, self.pool, rows, self.name)

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        switches, edge = config.generator, models["edge"]
        settings = settings_of(cls, config)
        reader = settings.reader
        check_unpacked(config, "no_llm reads one prompt per row")
        leaves = _leaves(switches, settings, edge)
        dropout = switches.dropout
        decoder = Decoder(edge, remat=config.remat, dropout=dropout, layout=layout)

        def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
            gate_key, dropout_key = jax.random.split(key)
            table = frozen["edge"]["embed"]
            vectors = micro.vectors or [None] * len(micro.prompts)
            states = [
                states_of(reader, edge, table, trained, rows.tokens, rows.mask, own)
                for rows, own in zip(micro.prompts, vectors, strict=True)
            ]
            gates, statistics = route(
                switches,
                trained["router"],
                statistics,
                jnp.concatenate(states),
                train=True,
                key=gate_key,
            )
            pool = make_pool(trained["pool"], switches)
            drops = dropout_key if dropout else None
            nll = query_nll(decoder, frozen["edge"], pool, gates, micro.queries, drops)
            penalty, metrics = balance(gates, switches.cv_weight)
            return Loss(nll, statistics, penalty, metrics)

        def new(frozen: Any, key: jax.Array) -> tuple[Any, Any]:
            trained = initialise(leaves, key)
            trained["layers"] = LAYER_STD * trained["layers"]
            return trained, initialise(statistics_leaves(switches, edge.layers), key)

        statistics = statistics_leaves(switches, edge.layers)
        return Training(leaves, loss, statistics=statistics, new=new)

    @classmethod
    def completed(
        cls, config: ExperimentConfig, batches: Batches
    ) -> Callable[[Batch], Batch] | None:
        """With the vectors of the sentence encoder, if it is the reader."""
        settings = settings_of(cls, config)
        if settings.reader != "sentence":
            return None
        encoder = load_encoder(settings.folder)

        def with_vectors(batch: Batch) -> Batch:
            chunks = np.split(encoder(batch.texts), len(batch.prompts))
            return batch.replace(vectors=tuple(chunks))

        return with_vectors

    @classmethod
    def longest(cls, config: ExperimentConfig, batch: Batch) -> Batch:
        settings = settings_of(cls, config)
        if settings.reader != "sentence":
            return batch
        width = vector_width(settings.folder)
        return batch.replace(vectors=per_prompt(batch.prompts, width, jnp.float32))

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        parts = {"trained": trained, "statistics": statistics}
        generator = to_dict(config.generator)
        settings = settings_of(cls, config)
        more: dict[str, Any] = {"generator": generator}
        if settings.reader == "sentence":
            more["encoder"] = load_encoder(settings.folder).fingerprint
        return trained_parts(KIND, config, settings, models, parts, **more)


def states_of(
    reader: Reader,
    edge: ModelConfig,
    table: Float[Array, "V D"],
    trained: dict[str, Any],
    tokens: Int[Array, "P S"],
    mask: Bool[Array, "P S"],
    vectors: Float[Array, "P w"] | None = None,
) -> Float[Array, "P L D"]:
    """The router's inputs, instead of meta tokens' states: the prompt's plus the layer's vector.

    `vectors` are those of a sentence encoder, which reads the prompts itself.
    """
    if reader == "sentence":
        if vectors is None:
            raise ConfigError("a sentence encoder reads on the host; only a run has its vectors.")
        one = projected(trained["projection"], vectors)
    elif reader == "bag":
        one = bag(table, tokens, mask)
    else:
        one = encoded(Encoder.beside(edge), trained["encoder"], table, tokens, mask)
    return one[:, None] + trained["layers"]


def _leaves(config: GeneratorConfig, settings: NoLlmSettings, edge: ModelConfig) -> dict[str, Any]:
    leaves: dict[str, Any] = {
        "layers": Leaf((edge.layers, edge.width), ("layers", "embed"), "unit"),
        "router": router_leaves(config, edge.width, edge.layers),
        "pool": pool_leaves(config, edge),
    }
    if settings.reader == "encoder":
        leaves["encoder"] = encoder_leaves(Encoder.beside(edge))
    if settings.reader == "sentence":
        leaves["projection"] = projection_leaves(vector_width(settings.folder), edge.width)
    return leaves


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(config, reader, edge, table, parts, tokens, mask, vectors):
    """Gates [P, L, E] of left-padded prompts."""
    states = states_of(reader, edge, table, parts["trained"], tokens, mask, vectors)
    router, statistics = parts["trained"]["router"], parts["statistics"]
    return route(config, router, statistics, states, train=False, key=None)[0]
