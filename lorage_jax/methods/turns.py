"""The turns of a training run: those of its config, or of what it resumes or begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorage_jax.config import ExperimentConfig
from lorage_jax.data.templates import TemplateKind, chosen_kind
from lorage_jax.errors import ConfigError

FIRST = TemplateKind("plain", 1)  # of runs that recorded none


def run_template(
    config: ExperimentConfig,
    tokenizers: Mapping[str, Any],
    saved: dict[str, Any] | None,
    begun: TemplateKind | None = None,
) -> TemplateKind:
    """The template of a run, for the tokenizers of `cloud` and `edge`.

    A run that begins with a generator or a card keeps `begun`, the turns of that, and a resumed
    run, whose `train.saved.saved_config` is given, its version.

    Raises ConfigError if `config.init` was trained in other turns, and DataError if a chat template
    is asked for that a tokenizer does not have.
    """
    kind = chosen_kind(config.data.template, tokenizers["cloud"], tokenizers["edge"])
    if begun is not None:
        if config.data.template not in ("auto", begun.name):
            raise ConfigError(
                f"init is {config.init}, a generator with the {begun.name} template, but "
                f"data.template is {config.data.template}. Give this run the same, or auto."
            )
        kind = begun
    if saved is None:
        return kind
    before = TemplateKind.of(saved["template"]) if saved.get("template") else FIRST
    return before if before.name == kind.name else kind


def recorded_template(kind: TemplateKind) -> dict[str, Any]:
    """The field of a checkpoint's config; runs of the first version have none."""
    return {} if kind == FIRST else {"template": kind.to_dict()}
