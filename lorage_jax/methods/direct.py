"""Direct generation (paper, Section 3.2 and Table 9): the cloud's states become a LoRA, no pool.

The cloud reads the prompt and the meta tokens as for LoRA-Gen; a head turns the state of each meta
token into the LoRA of its layer (`generator.direct`). Rank, alpha, dropout and the cloud's adapters
are those of `config.generator`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.buckets import bucket, left_pad
from lorage_jax.config import ExperimentConfig, GeneratorConfig, ModelConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import check_types, from_dict, require, to_dict
from lorage_jax.files.journal import request_key
from lorage_jax.generator.card import Card
from lorage_jax.generator.direct import Head, as_experts, factors, head_leaves
from lorage_jax.generator.generator import scaled_meta
from lorage_jax.generator.meta_tokens import CloudReader, Prompts, adapter_leaves, meta_leaf
from lorage_jax.generator.reading import prompt_ids
from lorage_jax.generator.store import check_identity, recorded_path
from lorage_jax.hf.load import load_model
from lorage_jax.methods.cards import own_card, place_own
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.methods.parts import (
    parts_kind,
    read_manifest,
    read_parts,
    read_settings,
    reading,
    speaking,
    trained_parts,
)
from lorage_jax.models.bits import program_params
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import query_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.generator import check_models
from lorage_jax.train.room import check_unpacked
from lorage_jax.train.step import Loss

KIND = parts_kind("direct", "a head for direct generation")
BATCH_ROWS = 8  # prompts per cloud pass
ORIGIN = "computed from a system prompt by direct generation; nothing was trained for the prompt"


@dataclass(frozen=True)
class DirectSettings:
    """Settings of direct generation.

    `layers` makes the whole LoRA of a layer from its state, `ranks` one rank at a time.
    """

    head: Head = "layers"
    hidden: int = 64  # channels between the cloud's state and the LoRA
    penalty: float = 0.0  # on the mean square of the factors' numbers; Text-to-LoRA has 1e-3

    def __post_init__(self):
        check_types(self)
        require(self.hidden >= 1, f"hidden is {self.hidden}; expected 1 or more.")
        require(self.penalty >= 0, f"penalty is {self.penalty}; expected 0 or more.")


@register
@dataclass(frozen=True, eq=False)
class Direct(Method, Trainable):
    """Specialises the edge with a LoRA that a head computes from the cloud's states."""

    name: ClassVar[str] = "direct"
    what: ClassVar[str] = "a LoRA computed directly from the cloud's states, the bare question"
    result: ClassVar[str] = "direct"
    frozen: ClassVar[tuple[str, ...]] = ("cloud", "edge")
    settings: ClassVar[type | None] = DirectSettings

    cloud: Model
    edge: Model
    config: GeneratorConfig
    trained: Any
    template: TemplateKind
    identity: str

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Direct:
        values = read_manifest(KIND, source, edge)
        assert source is not None
        settings = read_settings(DirectSettings, values, source)
        path = recorded_path(values, "cloud", source)
        check_identity(path, values, "cloud")
        cloud = load_model(path, values["dtype"])
        try:
            config = from_dict(GeneratorConfig, values["generator"])
        except ConfigError as error:
            raise WeightsError(f"{source}/lorage.json is damaged: {error}") from None
        leaves = _leaves(config, settings, cloud.config, edge.config)
        parts = read_parts(source, leaves)
        kind, spoken = reading(cloud, values), speaking(edge, values)
        return cls(cloud, spoken, config, parts, kind, values["fingerprint"])

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Computes a LoRA per distinct prompt: a card whose pool is its only expert."""
        distinct = list(dict.fromkeys(prompts))
        turns = self.template.on(self.cloud.tokenizer)
        rows = prompt_ids(self.cloud, turns, distinct, self.edge.config.layers)
        cards = {}
        for begin in range(0, len(rows), BATCH_ROWS):
            batch = rows[begin : begin + BATCH_ROWS]
            made = self._made(batch)
            for i, ids in enumerate(batch):
                one = jax.tree.map(lambda x, i=i: x[:, i : i + 1], made)
                cards[distinct[begin + i]] = (self._card(one, ids), len(ids))
        return [
            Conditioning(card=cards[prompt][0], facts={"cloud_tokens": cards[prompt][1]})
            for prompt in prompts
        ]

    def _made(self, rows: Sequence[Sequence[int]]) -> Any:
        tokens, mask = left_pad(rows, bucket(max(map(len, rows))))
        params = program_params(self.cloud.params)
        return _compiled(self.config, self.cloud.config, params, self.trained, tokens, mask)

    def _card(self, experts: Any, ids: Sequence[int]) -> Card:
        name = request_key("direct", self.identity, np.asarray(ids, np.int32).tobytes())
        return own_card(self.edge, experts, self.config.scale, name, ORIGIN)

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return place_own(edge, rows)

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        settings, cloud, edge = settings_of(cls, config), models["cloud"], models["edge"]
        check_models(config, cloud, edge)
        check_unpacked(config, "direct has a LoRA per prompt, for whole rows")
        leaves = _leaves(config.generator, settings, cloud, edge)
        dropout = config.generator.dropout
        decoder = Decoder(edge, remat=config.remat, dropout=dropout, layout=layout)
        reader = CloudReader(config.generator, cloud, config.remat, layout, trains=True)

        def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
            cloud_key, edge_key = (None, None) if dropout == 0 else jax.random.split(key)
            states = reader.read(frozen["cloud"], trained, Prompts(micro.prompts), cloud_key)
            made = factors(trained["head"], states)
            pool = Pool(as_experts(made), "factors", config.generator.scale, "per_layer")
            count = states.shape[0]
            gates = jnp.broadcast_to(jnp.eye(count)[:, None], (count, edge.layers, count))
            nll = query_nll(decoder, frozen["edge"], pool, gates, micro.queries, edge_key)
            squares = [jnp.mean(jnp.square(x)) for x in jax.tree.leaves(made)]
            size = sum(squares) / len(squares)
            metrics = {"update_rms": jnp.sqrt(size)}
            return Loss(nll, penalty=settings.penalty * size, metrics=metrics)

        def new(frozen: Any, key: jax.Array) -> tuple[Any, Any]:
            trained = initialise(leaves, key)
            return scaled_meta(trained, cloud, frozen["cloud"]["embed"]), {}

        return Training(leaves, loss, new=new)

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        settings = settings_of(cls, config)
        more = {"generator": to_dict(config.generator), "dtype": config.dtype}
        return trained_parts(KIND, config, settings, models, trained, **more)


def _leaves(
    config: GeneratorConfig, settings: DirectSettings, cloud: ModelConfig, edge: ModelConfig
) -> dict[str, Any]:
    return {
        "meta": meta_leaf(cloud, edge),
        "adapters": adapter_leaves(config, cloud),
        "head": head_leaves(settings.head, settings.hidden, config.rank, cloud.width, edge),
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(config, cloud, params, trained, tokens, mask):
    """The LoRAs of left-padded prompts [P, S], as experts."""
    states = CloudReader(config, cloud).read(params, trained, Prompts((Rows(tokens, mask),)))
    return as_experts(factors(trained["head"], states))
