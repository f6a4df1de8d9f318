"""The generator's training: what is trained for a cloud and an edge, its loss, how it is saved."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lorage_jax.config import ExperimentConfig, ModelConfig, Source
from lorage_jax.data.batches import Batch
from lorage_jax.data.templates import ChatTemplate, TemplateKind, is_changed
from lorage_jax.errors import ConfigError, bullets
from lorage_jax.fields import to_dict
from lorage_jax.files.fingerprint import short
from lorage_jax.generator.generator import (
    Generator,
    Parts,
    new_trained,
    prompt_gates,
    trained_leaves,
)
from lorage_jax.generator.meta_tokens import CloudReader, Prompts
from lorage_jax.generator.pool import make_pool
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.generator.store import held_out, load_generator, read_values, save_generator
from lorage_jax.hf.arithmetic import arithmetic, different_arithmetic
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.distilled import distilled_loss
from lorage_jax.train.edge_loss import query_nll
from lorage_jax.train.experiment import Trained, Training
from lorage_jax.train.flops import step_flops
from lorage_jax.train.losses import balance
from lorage_jax.train.room import check_room
from lorage_jax.train.step import Loss, LossFn

# Switches that only training sees: they may differ from those of the generator in `init`.
FREE = ("dropout", "gumbel_temperature", "cv_weight")


def generator_training(
    config: ExperimentConfig,
    models: Mapping[str, ModelConfig],
    layout: Layout,
    distilled: float = 0.0,
) -> Training:
    """Everything trained of a generator: meta tokens, cloud adapters, router and pool.

    `distilled`: the share of a teacher in the loss, see `generator_loss`.

    Raises ConfigError if the cloud lacks `hidden_layer`, or a context is too short for the lengths
    in `config`.
    """
    cloud, edge = models["cloud"], models["edge"]
    check_models(config, cloud, edge)
    if distilled:
        check_room(config, edge, prompt=True, reader="a teacher (distilled)")

    def new(frozen: Any, key: jax.Array) -> tuple[Any, Any]:
        return new_trained(config.generator, cloud, edge, frozen["cloud"]["embed"], key)

    return Training(
        leaves=trained_leaves(config.generator, cloud, edge),
        loss=generator_loss(config, cloud, edge, layout, distilled),
        statistics=statistics_leaves(config.generator, edge.layers),
        new=new,
        flops=functools.partial(step_flops, config.generator, cloud, edge),
    )


def generator_loss(
    config: ExperimentConfig,
    cloud: ModelConfig,
    edge: ModelConfig,
    layout: Layout,
    distilled: float = 0.0,
) -> LossFn:
    """The loss of Eq. 9: the edge's on the targets, and a balance term on the gates.

    The cloud reads P prompts once, the edge their P x Q queries, each row under the gates of its
    prompt. Metrics: cv (before weighting), usage and mean gates (gate_mass) [L, E].

    With `distilled` above 0, it is `train.distilled.distilled_loss`, with its metrics, on batches
    with `shown`. The teacher's weights are `frozen["teacher"]`, if there are any, or the edge's.
    """
    dropout = config.generator.dropout
    decoder = Decoder(edge, remat=config.remat, dropout=dropout, layout=layout)
    reader = CloudReader(config.generator, cloud, config.remat, layout, trains=True)

    def loss(trained, statistics, frozen, micro: Batch, key) -> Loss:
        gate_key, dropout_key = jax.random.split(key)
        prompts = Prompts(micro.prompts, config.data.prompts_per_row)
        parts = Parts(trained, statistics)
        gates, statistics = prompt_gates(reader, frozen["cloud"], parts, prompts, gate_key)
        pool = make_pool(trained["pool"], config.generator)
        if not distilled:
            nll = query_nll(decoder, frozen["edge"], pool, gates, micro.queries, dropout_key)
            metrics = {}
        else:
            rest = gates, micro, dropout_key, distilled
            nll, metrics = distilled_loss(decoder, frozen, pool, *rest)
        penalty, evenness = balance(gates, config.generator.cv_weight)
        return Loss(nll, statistics, penalty, metrics | evenness)

    return loss


def finished_generator(
    config: ExperimentConfig,
    models: Mapping[str, Model],
    trained: Any,
    statistics: Any,
    facts: Mapping[str, Any] | None = None,
) -> Trained:
    """The trained generator, to be written as a folder for `load_generator`.

    `facts` are further ones about its training.
    """
    edge = models["edge"]
    generator = Generator(
        config=config.generator,
        cloud=models["cloud"],
        edge=edge.config,
        edge_fingerprint=edge.fingerprint,
        trained=trained,
        statistics=statistics,
        edge_source=edge.source,
        template=TemplateKind() if edge.template is None else edge.template.kind,
        chat_templates={
            role: model.template.source
            for role, model in models.items()
            if isinstance(model.template, ChatTemplate)
        },
        turns={
            role: model.template.read_digest() if role == "cloud" else model.template.digest()
            for role, model in models.items()
            if model.template is not None
        },
        about={
            "steps": config.steps,
            "seed": config.seed,
            "dtype": config.dtype,
            "data": [_named(source) for source in config.data.sources],
            **_held_out(config),
            **(facts or {}),
        },
    )
    write = functools.partial(save_generator, generator, overwrite=True)
    return Trained(generator.fingerprint, write)


def _named(source: Source) -> str:
    """The name of a source of data, without its place on this machine."""
    return " ".join(filter(None, (Path(source.path).name, source.name)))


def _held_out(config: ExperimentConfig) -> dict[str, Any]:
    """The `held_out` of the sources of tasks, also of the generator that training began with."""
    found = [to_dict(one.held_out) for one in config.data.sources if one.kind == "tasks"]
    if config.init:
        found += map(to_dict, held_out(read_values(config.init)))
    unique = [one for i, one in enumerate(found) if one not in found[:i]]
    return {"held_out": unique} if unique else {}


def begun_generator(
    config: ExperimentConfig, models: Mapping[str, Model]
) -> tuple[Any, Any, str] | None:
    """(trained, statistics, fingerprint) of the generator in `config.init`; None without one.

    Raises ConfigError unless it has this run's switches and edge.
    """
    if not config.init:
        return None
    begun, edge = load_generator(config.init, models["cloud"]), models["edge"]
    if begun.edge_fingerprint != edge.fingerprint:
        raise ConfigError(
            f"init is {config.init}, a generator for another edge (weights "
            f"{short(begun.edge_fingerprint)}, here {short(edge.fingerprint)}). Train on its "
            "edge, or begin without init."
        )
    if different := different_arithmetic(arithmetic(begun.edge), edge.config):
        raise ConfigError(
            f"init is {config.init}, a generator whose edge has the same weights but another "
            f"config.json:\n{bullets(different)}"
        )
    changed = [r for r, m in models.items() if is_changed(begun.chat_templates.get(r), m.tokenizer)]
    if changed:
        raise ConfigError(
            f"init is {config.init}, a generator that was trained with another chat template of "
            f"the {' and the '.join(changed)}. Put back the chat_template.jinja of its training."
        )
    found, wanted = to_dict(begun.config), to_dict(config.generator)
    other = [
        f"{name} {found[name]}, here {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name] and name not in FREE
    ]
    if other:
        raise ConfigError(
            f"init is {config.init}, whose generator has other switches: {'; '.join(other)}. Give "
            "this run the same, or begin without init."
        )
    return begun.trained, begun.statistics, begun.fingerprint


def check_models(config: ExperimentConfig, cloud: ModelConfig, edge: ModelConfig) -> None:
    """ConfigError unless the models are as deep and their contexts as long as `config` needs."""
    layer = config.generator.hidden_layer
    if layer is not None and not 0 <= layer < cloud.layers:
        raise ConfigError(
            f"hidden_layer is {layer}; the cloud's layers are 0 to {cloud.layers - 1}."
        )
    needed = config.data.max_prompt_tokens + edge.layers
    if needed > cloud.max_positions:
        raise ConfigError(
            f"max_prompt_tokens {config.data.max_prompt_tokens} and {edge.layers} meta "
            f"tokens exceed the cloud's context of {cloud.max_positions}."
        )
    if config.data.max_query_tokens > edge.max_positions:
        raise ConfigError(
            f"max_query_tokens {config.data.max_query_tokens} exceeds the edge's context of "
            f"{edge.max_positions}."
        )
