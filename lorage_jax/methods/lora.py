"""A baseline: one LoRA on the edge for all tasks, in the forms LoRA, DoRA and VeRA.

It is trained on the batches of a generator's run (same config, seed and examples). With `prompt`
none, the edge never sees a system prompt: the gain over the bare edge is what can be learnt about
the tasks as a whole. With in_context it reads the prompt before each query, as the paper's baseline
does. Rank, alpha and dropout are those of `config.generator`, unless the settings say otherwise, so
it has the rank of a LoRA that a generator with `factors` assembles.

Its folder is a PEFT folder: `peft` and `lorage generate --adapter` load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import check_types, home_path, require
from lorage_jax.files.fingerprint import fingerprint_arrays, short
from lorage_jax.files.manifest import Kind, manifest_of, write_manifest
from lorage_jax.files.outputs import new_folder
from lorage_jax.files.safetensors import read_tensors
from lorage_jax.generator import loras
from lorage_jax.generator.card import check_arithmetic
from lorage_jax.generator.lora_folder import check_form, write_lora, write_vera
from lorage_jax.generator.loras import Form, Linear, Updates
from lorage_jax.generator.peft import merge_loras, own_turns, trained_turns
from lorage_jax.generator.pool import expert_leaves
from lorage_jax.generator.trees import flatten
from lorage_jax.hf import peft_weights
from lorage_jax.hf.arithmetic import arithmetic
from lorage_jax.hf.export import write_template
from lorage_jax.hf.tokenizer import save_tokenizer
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import queries_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.room import check_room
from lorage_jax.train.step import Loss, LossFn

ORIGIN = "the `lora` folder of a run"
LORA = Kind("lorage-lora/2", "a LoRA for all tasks", ORIGIN, {"base.fingerprint": str})
FIRST = Kind(  # earlier runs: the FFN's factors, each with an axis of one expert
    "lorage-lora/1",
    "a LoRA for all tasks",
    ORIGIN,
    {"rank": int, "alpha": int | float, "edge": str},
)
FIRST_TENSORS = "lora.safetensors"
VERA_RANK = 256  # PEFT's default

Shown = Literal["none", "in_context"]


@dataclass(frozen=True)
class LoraSettings:
    """Settings of the method `lora`; None means the value of `config.generator`.

    `targets` are the linear layers, by default those of the FFN.
    """

    form: Form = "lora"
    targets: tuple[Linear, ...] | None = None
    prompt: Shown = "none"  # in_context: the edge reads the system prompt before each query
    rank: int | None = None  # with vera, None means 256
    alpha: float | None = None  # scales the update by alpha / rank; vera has none
    dropout: float | None = None

    def __post_init__(self):
        check_types(self)
        require(self.rank is None or self.rank >= 1, f"rank is {self.rank}; expected 1 or more.")
        require(
            self.dropout is None or 0 <= self.dropout < 1,
            f"dropout is {self.dropout}; expected 0 <= dropout < 1.",
        )


@dataclass(frozen=True)
class Shape:
    """The settings of a run, with every default filled in."""

    form: Form
    targets: tuple[str, ...]
    rank: int
    alpha: float
    dropout: float

    @property
    def scale(self) -> float:
        """The factor of the trained factors' product."""
        return 1.0 if self.form == "vera" else self.alpha / self.rank


def shape_of(config: ExperimentConfig, settings: LoraSettings, edge: ModelConfig) -> Shape:
    """The shape of a run's LoRA. Raises ConfigError for targets that the edge does not have."""
    targets = loras.linears(edge, settings.targets)
    check_form(edge, settings.form, targets)
    usual = VERA_RANK if settings.form == "vera" else config.generator.rank
    return Shape(
        settings.form,
        targets,
        rank=usual if settings.rank is None else settings.rank,
        alpha=config.generator.alpha if settings.alpha is None else settings.alpha,
        dropout=config.generator.dropout if settings.dropout is None else settings.dropout,
    )


@register
@dataclass(frozen=True, eq=False)
class Lora(Method, Trainable):
    """One LoRA for all tasks, merged into the edge."""

    name: ClassVar[str] = "lora"
    what: ClassVar[str] = "one LoRA for all tasks"
    result: ClassVar[str] = "lora"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    settings: ClassVar[type | None] = LoraSettings

    lora: peft_weights.Lora
    template: TemplateKind
    edge_sees_prompt: bool = False

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Lora:
        if source is None:
            raise ConfigError("lora needs the folder of a trained LoRA; none was given.")
        source = home_path(source)
        found, values = read_lora(source, edge)
        kind = own_turns(source) or TemplateKind.of(values)
        if edge.tokenizer is not None:
            trained_turns(source, kind, edge)
        return cls(found, kind, values.get("prompt") == "in_context")

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        if self.edge_sees_prompt:
            return [Conditioning(context=prompt) for prompt in prompts]
        return [Conditioning()] * len(prompts)

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(merged_lora(edge, self.lora, self.template))

    @classmethod
    def edge_reads_prompt(cls, config: ExperimentConfig) -> bool:
        return settings_of(cls, config).prompt == "in_context"

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        edge, settings = models["edge"], settings_of(cls, config)
        check_room(config, edge, prompt=settings.prompt == "in_context")
        shape = shape_of(config, settings, edge)
        loss = lora_loss(config, shape, edge, layout)
        kind = (edge, shape.targets, shape.rank)
        if shape.form == "lora":
            return Training(loras.lora_leaves(*kind), loss)
        if shape.form == "dora":
            leaves = loras.dora_leaves(*kind)
            return Training(leaves, loss, new=lambda frozen, key: _new_dora(leaves, frozen, key))
        return Training(
            loras.vera_leaves(*kind),
            loss,
            statistics=loras.vera_projections(*kind),
            new=lambda frozen, key: loras.new_vera(*kind, key),
        )

    @classmethod
    def finish(
        cls,
        config: ExperimentConfig,
        models: Mapping[str, Model],
        trained: Any,
        statistics: Any,
        facts: Mapping[str, Any] | None = None,
    ) -> Trained:
        """Makes the PEFT folder; `facts` are further fields of its manifest."""
        edge, settings = models["edge"], settings_of(cls, config)
        shape = shape_of(config, settings, edge.config)
        known = {**about(config, settings.prompt), **(facts or {})}

        def write(folder: Path) -> None:
            save_lora(folder, edge, shape, trained, statistics, known)

        return Trained(fingerprint_arrays(flatten({**trained, **statistics})), write)


def _new_dora(leaves: Any, frozen: Any, key: jax.Array) -> tuple[Updates, dict[str, Any]]:
    trained = initialise(leaves, key)
    return loras.first_magnitudes(frozen["edge"]["layers"], trained), {}


def lora_loss(config: ExperimentConfig, shape: Shape, edge: ModelConfig, layout: Layout) -> LossFn:
    """The edge's loss on the queries, with the LoRA in every layer and row."""
    decoder = Decoder(edge, remat=config.remat, dropout=shape.dropout, layout=layout)

    def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
        nll, _ = queries_nll(
            decoder,
            frozen["edge"],
            micro.queries,
            key,
            adapters=_updates(edge, shape, trained, statistics),
            adapter_scale=shape.scale,
        )
        return Loss(nll, statistics)

    return loss


def _updates(edge: ModelConfig, shape: Shape, trained: Updates, statistics: Any) -> Updates:
    if shape.form == "vera":
        return loras.vera_updates(edge, trained, statistics)
    return loras.without_expert_axis(trained)


def about(config: ExperimentConfig, prompt: Shown) -> dict[str, Any]:
    """Facts of a run for the manifest of its result."""
    return {
        "prompt": prompt,
        "about": {"steps": config.steps, "seed": config.seed, "dtype": config.dtype},
    }


def save_lora(
    folder: Path,
    edge: Model,
    shape: Shape,
    trained: Updates,
    statistics: Any,
    facts: Mapping[str, Any],
) -> None:
    """Writes a PEFT folder that `read_lora` reads; `facts` go into its manifest."""
    with new_folder(folder, overwrite=True) as temporary:
        if shape.form == "vera":
            write_vera(temporary, edge, trained, statistics, facts["about"]["seed"])
        else:
            updates = loras.without_expert_axis(trained)
            dora = shape.form == "dora"
            write_lora(temporary, edge, updates, shape.rank, shape.alpha, dora=dora)
        turns: dict[str, Any] = {}
        if edge.template is not None:
            turns = {**edge.template.kind.to_dict(), "turns": edge.template.digest()}
            save_tokenizer(edge.tokenizer, temporary)
            write_template(edge.template, temporary)
        values = {
            "format": LORA.format,
            "base": {
                "fingerprint": edge.fingerprint,
                "arithmetic": arithmetic(edge.config),
            },
            **turns,
            **facts,
        }
        write_manifest(temporary, values)


def load_lora(folder: str | Path, edge: Model) -> Model:
    """Loads a LoRA and merges it into the edge, which then has the turns of its training.

    Raises WeightsError if it was trained for another edge or tokenizer, or the folder is damaged.
    """
    found = Lora.load(edge, Path(folder))
    return merged_lora(edge, found.lora, found.template)


def merged_lora(edge: Model, lora: peft_weights.Lora, template: TemplateKind) -> Model:
    """The edge with a LoRA merged, in the turns of its training."""
    turns = None if edge.tokenizer is None else template.on(edge.tokenizer)
    return merge_loras(edge, [lora], [1.0]).replace(template=turns)


def read_lora(folder: str | Path, edge: Model) -> tuple[peft_weights.Lora, dict[str, Any]]:
    """The updates of a trained LoRA, and its manifest.

    Raises WeightsError if it was trained for another edge or the folder is damaged.
    """
    folder = home_path(folder)
    first = manifest_of(folder).get("format") == FIRST.format
    values = (FIRST if first else LORA).read(folder)
    check_edge(folder, {"fingerprint": values["edge"]} if first else values["base"], edge)
    read = _read_first(folder, values, edge) if first else peft_weights.read_lora(folder, edge)
    return read, values


def check_edge(folder: Path, recorded: Mapping[str, Any], edge: Model) -> None:
    """Raises WeightsError unless `edge` has the weights and arithmetic that a result recorded."""
    trained_for = recorded["fingerprint"]
    if trained_for != edge.fingerprint:
        raise WeightsError(
            f"{folder} was trained for the edge model {short(trained_for)}, not for "
            f"{short(edge.fingerprint)} ({edge.source}). Load the edge it was trained on."
        )
    check_arithmetic(recorded.get("arithmetic"), edge, str(folder))


def _read_first(folder: Path, values: Mapping[str, Any], edge: Model) -> peft_weights.Lora:
    leaves = expert_leaves(edge.config, 1, values["rank"], "per_layer")
    shapes = {name: leaf.shape for name, leaf in flatten(leaves).items()}
    arrays = read_tensors(folder / FIRST_TENSORS, shapes)
    trained = {
        projection: {part: np.asarray(arrays[f"{projection}.{part}"]) for part in ("a", "b")}
        for projection in leaves
    }
    updates = loras.without_expert_axis(trained)
    scale = values["alpha"] / values["rank"]
    return peft_weights.Lora(
        loras.layer_updates(edge.config, updates, scale), [], fingerprint_arrays(arrays)
    )
