"""The turns of a training run: those of its config, or of what it resumes or begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorage_jax.config import ExperimentConfig
from lorage_jax.data.templates import TemplateKind, chosen_kind
from lorage_jax.distributed import check_same
from lorage_jax.errors import ConfigError
from lorage_jax.train.checkpoint import Checkpoints, is_url
from lorage_jax.train.loop import go_back
from lorage_jax.train.resume import Resume

FIRST = TemplateKind("plain", 1)  # of runs that recorded none


def run_template(
    config: ExperimentConfig,
    tokenizers: Mapping[str, Any],
    saved: dict[str, Any] | None,
    begun: TemplateKind | None = None,
) -> TemplateKind:
    """The template of a run, for the tokenizers of `cloud` and `edge`.

    A run that begins with a generator or a card keeps `begun`, the turns of that, and a resumed
    run, whose `saved_config` is given, its version.

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


def saved_config(
    config: ExperimentConfig, checkpoints: str | None, resume: bool | Resume
) -> dict[str, Any] | None:
    """The config in the checkpoint that a run resumes; None if there is none.

    Checkpoints after `resume.step` are set aside. All processes must call it, outside
    `distributed.together`. Raises TrainingError if there is no such step, and ConfigError if some
    processes see no checkpoints.
    """
    folder = checkpoints or Path(config.out) / "checkpoints"
    there = bool(resume) and (is_url(folder) or Path(folder).is_dir())
    check_same({"a folder of checkpoints": there}, f"All processes need {folder}.")
    if not there:
        return None
    with Checkpoints(folder, config.keep) as found:
        step = resume.step if isinstance(resume, Resume) else None
        if step is not None:
            go_back(found, step)
        step = found.latest() if step is None else step
        return None if step is None else found.config(step)
