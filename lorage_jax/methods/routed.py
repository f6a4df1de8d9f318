"""What LoRAMoE and MixLoRA share: experts beside the edge, chosen per token, and never merged.

A folder has `experts.safetensors` (the trained arrays) and `lorage.json` (the settings and the
edge's fingerprint).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import from_dict, require, to_dict
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.files.manifest import Kind, write_manifest
from lorage_jax.files.outputs import new_folder
from lorage_jax.files.safetensors import read_tensors, save
from lorage_jax.generator.generator import flatten
from lorage_jax.methods.lora import about, base_of, check_edge, check_room
from lorage_jax.methods.method import Conditioning, Method, Placement, beside
from lorage_jax.models.decoder import Decoder, Output
from lorage_jax.models.experts import Routed
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import queries_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.step import Loss, LossFn

TENSORS = "experts.safetensors"
FORMAT = "lorage-routed/1"
Sums = dict[str, dict[str, Float[Array, "L B E"]]]  # `Output.routing`


@dataclass(frozen=True, eq=False)
class RoutedMethod(Method, Trainable):
    """A method whose experts are chosen by routers in the layers.

    Attributes:
        pool: the trained experts and routers.
        template: the turns of the training.
        edge_sees_prompt: as in training.
    """

    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    mergeable: ClassVar[bool] = False

    pool: Routed
    template: TemplateKind
    edge_sees_prompt: bool = False

    @classmethod
    def leaves(cls, edge: ModelConfig, settings: Any) -> dict[str, Any]:
        """The trained parts."""
        raise NotImplementedError

    @classmethod
    def first(cls, edge: ModelConfig, settings: Any, key: jax.Array) -> dict[str, Any]:
        """Fresh trained parts."""
        raise NotImplementedError

    @classmethod
    def routed(cls, trained: Any, settings: Any, identity: str = "") -> Routed:
        """The trained parts as the decoder takes them."""
        raise NotImplementedError

    @classmethod
    def balance(
        cls,
        settings: Any,
        sums: Sums,
        tokens: Float[Array, "B"],
        sources: Int[Array, "B"] | None = None,
    ) -> Float[Array, ""]:
        """The term of the loss that balances the experts, with its weight.

        `sums` and `tokens` are over the real slots of each row; `sources` are the numbers of the
        rows' sources, if `reads_sources`.
        """
        raise NotImplementedError

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Any:
        if source is None:
            raise ConfigError(f"{cls.name} needs the folder of a run's result; none was given.")
        values = _kind(cls).read(source)
        if values["method"] != cls.name:
            raise WeightsError(f"{source} holds {values['method']}; expected {cls.name}.")
        check_edge(source, values["base"], edge)
        kind: Any = cls.settings
        settings = from_dict(kind, values["settings"])
        leaves = cls.leaves(edge.config, settings)
        shapes = {name: leaf.shape for name, leaf in flatten(leaves).items()}
        arrays = read_tensors(source / TENSORS, shapes)
        trained = jax.tree_util.tree_map_with_path(
            lambda path, _: jnp.asarray(arrays[".".join(key.key for key in path)]), leaves
        )
        pool = cls.routed(trained, settings, _identity(arrays, settings))
        return cls(pool, TemplateKind.of(values), values["prompt"] == "in_context")

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        if self.edge_sees_prompt:
            return [Conditioning(context=prompt) for prompt in prompts]
        return [Conditioning()] * len(prompts)

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        """The edge with the experts beside it: they cannot be merged."""
        turns = None if edge.tokenizer is None else self.template.on(edge.tokenizer)
        return Placement(edge.replace(template=turns), pool=beside(self.pool, edge))

    @classmethod
    def edge_reads_prompt(cls, config: ExperimentConfig) -> bool:
        return settings_of(cls, config).prompt == "in_context"

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        edge, settings = models["edge"], settings_of(cls, config)
        check_room(config, edge, settings.prompt)
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
            shares = _shares(sums, tokens) if settings.experts > 1 else {}
            if pool.top_k is None:
                shares.pop("usage", None)  # all experts, always
            return Loss(nll, statistics, penalty, {"balance": penalty, **shares})

        return loss

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        edge, settings, arrays = models["edge"], settings_of(cls, config), flatten(trained)

        def write(folder: Path) -> None:
            with new_folder(folder, overwrite=True) as temporary:
                save(temporary / TENSORS, {k: np.asarray(v) for k, v in arrays.items()}, {})
                values = {
                    "format": FORMAT,
                    "method": cls.name,
                    "settings": to_dict(settings),
                    "base": base_of(edge),
                    **({} if edge.template is None else edge.template.kind.to_dict()),
                    **about(config, settings.prompt),
                }
                write_manifest(temporary, values)

        return Trained(_identity(arrays, settings), write)


def _kind(cls: type[RoutedMethod]) -> Kind:
    fields = {"method": str, "settings": dict, "base.fingerprint": str, "prompt": str}
    return Kind(FORMAT, f"a trained {cls.name}", f"the `{cls.result}` folder of a run", fields)


def _identity(arrays: Mapping[str, Any], settings: Any) -> str:
    """A fingerprint of all that decides what the experts do."""
    text = json.dumps(to_dict(settings), sort_keys=True)
    return fingerprint_arrays({**arrays, "settings": np.frombuffer(text.encode(), np.uint8)})


def _all_rows(micro: Batch, outputs: Sequence[Output]) -> tuple[Sums, Float[Array, "B"]]:
    """The routers' sums of the rows of all chunks, and the real slots of each row."""
    found = [one.routing for one in outputs if one.routing is not None]
    sums = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *found)
    masks = [rows.mask[:, :-1].astype(jnp.float32) for rows in micro.queries]
    return sums, jnp.concatenate([jnp.sum(mask, axis=1) for mask in masks])


def _row_sources(micro: Batch) -> Int[Array, "B"] | None:
    """The number of each row's source; None if the batch does not tell."""
    if not micro.sources:
        return None
    pairs = zip(micro.queries, micro.sources, strict=True)
    return jnp.concatenate(
        [jnp.repeat(one[:, 0], rows.tokens.shape[0] // one.shape[0]) for rows, one in pairs]
    )


def _shares(sums: Sums, tokens: Float[Array, "B"]) -> dict[str, Float[Array, "L E"]]:
    """How often a token keeps an expert, and with which probability; means over the routers."""

    def mean(part: str) -> Float[Array, "L E"]:
        return (
            sum(jnp.sum(one[part], axis=1) for one in sums.values()) / len(sums) / jnp.sum(tokens)
        )

    return {"usage": mean("kept"), "gate_mass": mean("probability")}


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
