"""How a run resumes: from which checkpoint, and what may have changed since."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lorage_jax.errors import TrainingError

COMMITTED = "_CHECKPOINT_METADATA"  # a file that every complete step has
ASIDE = "checkpoints_set_aside"


@dataclass(frozen=True)
class Resume:
    """How a run goes on from a checkpoint.

    Attributes:
        step: that of the checkpoint, by default the latest. Later ones, damaged or not, are moved
            to the folder `checkpoints_set_aside` next to theirs.
        changed_data: the data may be others than at the checkpoint. The run goes on at the same
            position of the new order, so some rows may come twice and others not at all in the
            epoch that was begun.
    """

    step: int | None = None
    changed_data: bool = False


def resume_of(resume: bool, step: int | None, data: str) -> Resume | None:
    """The options of the command line; a step, or changed data, mean to go on, too."""
    changed = data == "changed"
    return Resume(step, changed) if resume or changed or step is not None else None


def committed(folder: Any) -> list[int]:
    """The complete steps in a folder of checkpoints (any path-like object), ascending."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if (path / COMMITTED).exists()]
    return sorted(int(name) for name in names if name.isdecimal())


def set_aside(folder: Any, step: int) -> list[int]:
    """Moves all checkpoints after `step` out of the folder. Returns their steps.

    Raises TrainingError if there is no checkpoint of `step`, before anything is moved.
    """
    steps = committed(folder)
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise TrainingError(f"{folder} holds no checkpoint of step {step}; found {there}.")
    moved = [path for path in folder.iterdir() if path.name.isdecimal() and int(path.name) > step]
    target = folder.parent / ASIDE
    for path in moved:
        target.mkdir(parents=True, exist_ok=True)
        free = (f"{path.name}{f'.{n}' if n else ''}" for n in range(1000))
        path.rename(target / next(name for name in free if not (target / name).exists()))
    return sorted(int(path.name) for path in moved)


def unreadable(folder: Any) -> list[int]:
    """The steps whose loss cannot be read, by which no checkpoint of the folder can be opened."""
    found = []
    for step in committed(folder):
        file = folder / str(step) / "metrics" / "metrics"
        try:
            if file.exists():
                json.loads(file.read_text())
        except (OSError, ValueError):
            found.append(step)
    return found


def advice(folder: Any, step: int) -> str:
    """Advice for the user of a damaged checkpoint."""
    others = [other for other in reversed(committed(folder)) if other < step]
    if not others:
        return f"There is no earlier one; move {folder / str(step)} away to train from the start."
    there = ", ".join(map(str, others))
    return f"Go on from an earlier one with --resume-step {others[0]} (there are {there})."
