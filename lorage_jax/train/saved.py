"""The config that a resumed run recorded, before anything else of its checkpoint is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorage_jax.config import ExperimentConfig, PretrainConfig
from lorage_jax.distributed import check_same
from lorage_jax.train.checkpoint import Checkpoints, is_url
from lorage_jax.train.loop import go_back
from lorage_jax.train.resume import Resume


def saved_config(
    config: ExperimentConfig | PretrainConfig, checkpoints: str | None, resume: bool | Resume
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
