"""The generator: a cloud LM plus everything trained. A system prompt in, a card out.

Trained parts, one pytree: `meta` [L, C], `adapters` (cloud q/v LoRA), `router`, `pool`. Beside them
BatchNorm's running statistics, which training moves but no gradient does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.buckets import bucket, left_pad
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.data.batches import Rows
from lorage_jax.data.templates import (
    NEWEST,
    Template,
    TemplateKind,
    check_tokenizer,
    notice_change,
)
from lorage_jax.distributed import to_host
from lorage_jax.errors import WeightsError
from lorage_jax.fields import require_kind, to_dict
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.generator.card import Card, check_turns
from lorage_jax.generator.meta_tokens import CloudReader, Prompts, adapter_leaves, meta_leaf
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.generator.reading import prompt_ids
from lorage_jax.generator.router import route, router_leaves, statistics_leaves
from lorage_jax.generator.trees import flatten
from lorage_jax.hf.arithmetic import arithmetic
from lorage_jax.models.bits import program_params
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.sharding import layout_of


@dataclass(frozen=True, eq=False)
class Generator:
    """A cloud `Model` with the trained parts, made for the edge of `edge_fingerprint`."""

    config: GeneratorConfig
    cloud: Model
    edge: ModelConfig
    edge_fingerprint: str
    trained: dict[str, Any]
    statistics: dict[str, Any]
    edge_source: Path | None = None  # where the edge was when this was trained
    source: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)  # how it was trained
    template: TemplateKind = NEWEST  # the turns it was trained in
    # The text of the chat template of the cloud and of the edge at training, by role.
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    # At training, by role: `Template.read_digest` of the cloud, `Template.digest` of the edge.
    turns: Mapping[str, str | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line, without the values of the weights."""
        config, cloud = self.config, self.cloud.config
        return (
            f"Generator(cloud {cloud.family} of {cloud.layers} layers, edge {self.edge.family} of "
            f"{self.edge.layers} layers, {config.experts} experts of rank {config.rank}, "
            f"{self.source or 'in memory'})"
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of everything that decides a prompt's gates and what they mean."""
        arrays = flatten({"trained": self.trained, "statistics": self.statistics})
        parts = [
            fingerprint_arrays({k: np.asarray(v) for k, v in arrays.items()}),
            self.cloud.fingerprint,
            json.dumps(to_dict(self.config), sort_keys=True),
        ]
        if self.template.version > 1:
            parts.append(json.dumps(self.template.to_dict(), sort_keys=True))
        return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @functools.cached_property
    def reads(self) -> Template:
        """How the cloud reads a system prompt.

        Raises WeightsError if the cloud's tokenizer gives other ids for it than in training.
        """
        check_tokenizer(self.cloud.tokenizer, self.cloud.source or "the cloud")
        template = self._kind("cloud").on(self.cloud.tokenizer)
        check_turns(self.turns.get("cloud"), template.read_digest(), self.cloud)
        return template

    def speaking(self, edge: Model) -> Model:
        """The edge with the turns of this generator's training, whatever else it knows.

        Raises WeightsError if the edge's tokenizer gives other ids for them than in training.
        """
        check_tokenizer(edge.tokenizer, edge.source or "the edge")
        kind = self._kind("edge")
        template = kind.on(edge.tokenizer)
        notice_change(kind.source, edge.tokenizer, edge.source)
        check_turns(self.turns.get("edge"), template.digest(), edge)
        return edge.replace(template=template)

    def _kind(self, role: str) -> TemplateKind:
        return dataclasses.replace(self.template, source=self.chat_templates.get(role))

    @functools.cached_property
    def pool(self) -> Pool:
        """The experts, marked with this generator's fingerprint."""
        return make_pool(self.trained["pool"], self.config, self.fingerprint)


class Parts(NamedTuple):
    """Everything trained of a generator, and its running statistics."""

    trained: dict[str, Any]
    statistics: dict[str, Any]


def trained_leaves(
    config: GeneratorConfig, cloud: ModelConfig, edge: ModelConfig
) -> dict[str, Any]:
    """Shapes and axes of everything trained."""
    return {
        "meta": meta_leaf(cloud, edge),
        "adapters": adapter_leaves(config, cloud),
        "router": router_leaves(config, cloud.width, edge.layers),
        "pool": pool_leaves(config, edge),
    }


def new_trained(
    config: GeneratorConfig,
    cloud: ModelConfig,
    edge: ModelConfig,
    embed: Float[Array, "V C"],
    key: jax.Array,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fresh trained parts and statistics, float32.

    The meta tokens have the scale of `embed`, the cloud's token embeddings.
    """
    trained = initialise(trained_leaves(config, cloud, edge), key)
    trained = scaled_meta(trained, cloud, embed)
    return trained, initialise(statistics_leaves(config, edge.layers), key)


def scaled_meta(
    trained: dict[str, Any], cloud: ModelConfig, embed: Float[Array, "V C"]
) -> dict[str, Any]:
    """Trained parts with the meta tokens, drawn with std 1, at the scale of `embed`."""
    table = embed.astype(jnp.float32)
    size = jnp.sqrt(jnp.mean(table * table))
    if cloud.embedding_scale != 1:
        size = size * cloud.embedding_scale
    return trained | {"meta": trained["meta"] * size}


def prompt_gates(
    reader: CloudReader,
    params: dict[str, Any],
    parts: Parts,
    prompts: Prompts,
    key: jax.Array | None = None,
) -> tuple[Float[Array, "P L E"], dict[str, Any]]:
    """Gates of P prompts, and the running statistics after them.

    Passing `key` selects training mode: dropout, batch statistics, Gumbel noise; the statistics are
    then those after all chunks together.

    Args:
        reader: how the cloud reads.
        params: the cloud's frozen parameters.
        parts: trained parts and running statistics of a generator.
        prompts: the P prompts.
        key: random bits of this batch.
    """
    dropout_key, gumbel_key = (None, None) if key is None else jax.random.split(key)
    drops = dropout_key if reader.config.dropout > 0 else None
    hidden = reader.read(params, parts.trained, prompts, drops)
    router = parts.trained["router"]
    return route(
        reader.config, router, parts.statistics, hidden, train=key is not None, key=gumbel_key
    )


@functools.partial(jax.jit, static_argnames=("config", "cloud", "layout"))
def compiled_gates(config, cloud, params, trained, statistics, tokens, mask, layout=None):
    """Gates [P, L, E] of left-padded prompts [P, S], one per row: the program of `specialize`."""
    reader = CloudReader(config, cloud, layout=layout)
    prompts = Prompts((Rows(tokens, mask),))
    return prompt_gates(reader, params, Parts(trained, statistics), prompts)[0]


@overload
def specialize(generator: Generator, prompt: str) -> Card: ...
@overload
def specialize(generator: Generator, prompt: Sequence[str]) -> list[Card]: ...
def specialize(generator: Generator, prompt: str | Sequence[str]) -> Card | list[Card]:
    """The card of a system prompt (a list of prompts gives a list of cards, in one cloud pass).

    If the cloud's weights are spread over devices, so are the prompts; if over those of several
    processes, all must call it, with the same prompts, and all get the cards.

    DataError for an empty prompt, or one longer than the cloud's context; ConfigError for an
    argument of another kind.
    """
    known = 'a Generator, as lg.load_generator(folder or "nano") returns it'
    require_kind(generator, Generator, "generator", known)
    unlike = (bytes, Mapping, Set)  # its numbers, its keys, and an order that is not the caller's
    require_kind(prompt, Iterable, "prompt", "a text, or a list of texts", unlike)
    one = isinstance(prompt, str)
    prompts = [prompt] if one else list(prompt)
    for i, text in enumerate(prompts):
        require_kind(text, str, f"prompt {i}", "a text")
    if not prompts:
        return []
    rows = [prompt_tokens(generator, p) for p in prompts]
    tokens, mask = left_pad(rows, bucket(max(map(len, rows), default=1)))
    layout, parts = layout_of(generator.cloud.params), (generator.trained, generator.statistics)
    if layout is not None:
        tokens, mask = layout.spread(tokens), layout.spread(mask)
        parts = jax.tree.map(np.asarray, parts)  # the mesh may span processes
    gates = compiled_gates(
        generator.config,
        generator.cloud.config,
        program_params(generator.cloud.params),
        *parts,
        tokens,
        mask,
        layout,
    )
    gates = to_host(gates)[: len(rows)]
    if not np.isfinite(gates).all():
        raise WeightsError(
            "the gates are not finite: the cloud's weights or the generator hold NaN or infinity."
        )
    cards = [
        Card(
            gates=np.asarray(g, np.float32),
            generator=generator.fingerprint,
            edge=generator.edge_fingerprint,
            pool=generator.pool,
            edge_arithmetic=arithmetic(generator.edge),
            chat_template=generator.chat_templates.get("edge"),
            about={
                "prompt_sha256": prompt_digest(p),
                "cloud_tokens": len(row),
                **generator.template.to_dict(),
                **({} if (turns := generator.turns.get("edge")) is None else {"turns": turns}),
            },
        )
        for g, p, row in zip(np.asarray(gates), prompts, rows, strict=True)
    ]
    return cards[0] if one else cards


def prompt_digest(prompt: str) -> str:
    """The hash of a system prompt, without space around it: its card's `prompt_sha256`."""
    return hashlib.sha256(prompt.strip().encode()).hexdigest()


def prompt_tokens(generator: Generator, prompt: str) -> list[int]:
    """The cloud's tokens of a system prompt, checked to leave room for the meta tokens."""
    return prompt_ids(generator.cloud, generator.reads, [prompt], generator.edge.layers)[0]
