"""Folders of trained parts: `parts.safetensors` (arrays) and `lorage.json` (all else).

Methods whose trained parts belong to one edge (and to a cloud, if they need one) keep them so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lorage_jax.config import ExperimentConfig
from lorage_jax.data.templates import ChatTemplate, TemplateKind, notice_change
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import from_dict, to_dict
from lorage_jax.files.fingerprint import fingerprint_arrays, short
from lorage_jax.files.manifest import Kind, write_manifest
from lorage_jax.files.outputs import new_folder
from lorage_jax.files.safetensors import save
from lorage_jax.generator.card import check_arithmetic, check_turns
from lorage_jax.generator.store import recorded_places
from lorage_jax.generator.trees import flatten, read_tree
from lorage_jax.hf.arithmetic import arithmetic
from lorage_jax.hf.family import to_values
from lorage_jax.models.model import Model
from lorage_jax.train.experiment import Trained

TENSORS = "parts.safetensors"
FIELDS: dict[str, Any] = {
    "fingerprint": str,
    "edge": str,
    "settings": dict,
    "templates": int,
    "template": str,
}

S = TypeVar("S")


def parts_kind(method: str, name: str) -> Kind:
    """The format of a method's folder; `name` is what messages call its content."""
    return Kind(f"lorage-{method}/1", name, f"the `{method}` folder of a run", FIELDS)


def trained_parts(
    kind: Kind,
    config: ExperimentConfig,
    settings: Any,
    models: Mapping[str, Model],
    parts: dict[str, Any],
    **values: Any,
) -> Trained:
    """The result of a run: trained parts (nested dicts of arrays), to be written as a folder.

    `values` are further fields of its manifest.
    """
    arrays = {name: np.asarray(array) for name, array in flatten(parts).items()}
    edge, identity = models["edge"], fingerprint_arrays(arrays)
    turns, chat_template = recorded_turns(edge)
    if chat_template is not None:
        turns["chat_template"] = chat_template

    def write(folder: Path) -> None:
        with new_folder(folder, overwrite=True) as temporary:
            save(temporary / TENSORS, arrays, {})
            cloud = {} if "cloud" not in models else {"cloud": _source(models["cloud"], folder)}
            content = {
                "format": kind.format,
                "fingerprint": identity,
                "settings": to_dict(settings),
                "edge": edge.fingerprint,
                "edge_arithmetic": arithmetic(edge.config),
                **turns,
                **cloud,
                **values,
                "about": {"steps": config.steps, "seed": config.seed, "dtype": config.dtype},
            }
            write_manifest(temporary, content)

    return Trained(identity, write)


def read_manifest(kind: Kind, folder: Path | None, edge: Model) -> dict[str, Any]:
    """The manifest of a folder that was trained for `edge`.

    Raises ConfigError without a folder, and WeightsError for one of another method or edge.
    """
    if folder is None:
        raise ConfigError(f"{kind.origin} is needed to load {kind.name}; none was given.")
    values = kind.read(folder)
    if values["edge"] != edge.fingerprint:
        raise WeightsError(
            f"{folder} was trained for the edge model {short(values['edge'])}, not for "
            f"{short(edge.fingerprint)} ({edge.source}). Load the edge it was trained on."
        )
    check_arithmetic(values.get("edge_arithmetic"), edge, str(folder))
    return values


def read_settings(cls: type[S], values: Mapping[str, Any], folder: Path | None) -> S:
    """The settings in a manifest. Raises WeightsError if they are damaged."""
    try:
        return from_dict(cls, values["settings"])
    except ConfigError as error:
        raise WeightsError(
            f"{folder}: the settings in its lorage.json are damaged: {error}"
        ) from None


def read_parts(folder: Path, leaves: dict[str, Any]) -> dict[str, Any]:
    """`read_tree` of a folder's trained parts."""
    return read_tree(Path(folder) / TENSORS, leaves)


def recorded_kind(values: Mapping[str, Any]) -> TemplateKind:
    """The edge's turns in a manifest, with the text of the chat template at training."""
    return dataclasses.replace(TemplateKind.of(values), source=values.get("chat_template"))


def recorded_turns(edge: Model) -> tuple[dict[str, Any], str | None]:
    """The facts that tell the edge's turns, and the text of its chat template, if it has one.

    They are fields of a manifest, and `about` and `chat_template` of a card.
    """
    if edge.template is None:
        return TemplateKind().to_dict(), None
    facts = {**edge.template.kind.to_dict(), "turns": edge.template.digest()}
    return facts, edge.template.source if isinstance(edge.template, ChatTemplate) else None


def speaking(edge: Model, values: Mapping[str, Any]) -> Model:
    """The edge in the turns of the training that wrote a manifest.

    Raises WeightsError if the edge's tokenizer gives other ids for them than in training.
    """
    if edge.tokenizer is None:
        return edge
    kind = recorded_kind(values)
    template = kind.on(edge.tokenizer)
    notice_change(kind.source, edge.tokenizer, edge.source)
    check_turns(values.get("turns"), template.digest(), edge)
    return edge.replace(template=template)


def reading(cloud: Model, values: Mapping[str, Any]) -> TemplateKind:
    """The turns in which a cloud reads prompts, those of the training that wrote a manifest.

    Raises WeightsError if the cloud's tokenizer gives other ids for them than in training.
    """
    recorded = values["cloud"]
    kind = dataclasses.replace(TemplateKind.of(values), source=recorded.get("chat_template"))
    if cloud.tokenizer is not None:
        notice_change(kind.source, cloud.tokenizer, cloud.source)
        check_turns(recorded.get("turns"), kind.on(cloud.tokenizer).read_digest(), cloud)
    return kind


def _source(model: Model, folder: Path) -> dict[str, Any]:
    """A cloud in a manifest: weights, config, turns, and where it is.

    `recorded_path` reads the places, `reading` the turns.
    """
    found = {"fingerprint": model.fingerprint, "config": to_values(model.config)}
    if model.template is not None:
        found["turns"] = model.template.read_digest()
    if isinstance(model.template, ChatTemplate):
        found["chat_template"] = model.template.source
    return found | recorded_places(model.source, Path(folder))
