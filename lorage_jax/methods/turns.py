"""The turns of a training run: those of its config, of the run it resumes, or of its `init`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorage_jax.config import ExperimentConfig
from lorage_jax.data.templates import TemplateKind, chosen_kind
from lorage_jax.errors import ConfigError
from lorage_jax.generator.store import read_values
from lorage_jax.train.checkpoint import Checkpoints, is_url

FIRST = TemplateKind("plain", 1)  # of runs that recorded none


def run_template(
    config: ExperimentConfig,
    tokenizers: Mapping[str, Any],
    checkpoints: str | None,
    *,
    resume: bool,
) -> TemplateKind:
    """The template of a run, for the tokenizers of `cloud` and `edge`.

    A resumed run keeps its version, and so does one that starts from another generator.

    Raises ConfigError if `config.init` was trained in other turns, and DataError if a chat template
    is asked for that a tokenizer does not have.
    """
    kind = chosen_kind(config.data.template, tokenizers["cloud"], tokenizers["edge"])
    if config.init:
        begun = TemplateKind.of(read_values(config.init))
        if config.data.template not in ("auto", begun.name):
            raise ConfigError(
                f"init is {config.init}, a generator with the {begun.name} template, but "
                f"data.template is {config.data.template}. Give this run the same, or auto."
            )
        return begun
    values = saved_config(config, checkpoints) if resume else None
    if values is None:
        return kind
    saved = TemplateKind.of(values["template"]) if values.get("template") else FIRST
    return saved if saved.name == kind.name else kind


def recorded_template(kind: TemplateKind) -> dict[str, Any]:
    """The field of a checkpoint's config; runs of the first version have none."""
    return {} if kind == FIRST else {"template": kind.to_dict()}


def saved_config(config: ExperimentConfig, checkpoints: str | None) -> dict[str, Any] | None:
    """The config in the latest checkpoint of the run to resume; None if there is none."""
    folder = checkpoints or Path(config.out) / "checkpoints"
    if not is_url(folder) and not Path(folder).is_dir():
        return None
    with Checkpoints(folder, config.keep) as found:
        return None if found.latest() is None else found.config()
