"""`lorage train`: an experiment file to a generator folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lorage_jax.commands.experiment import load_experiment


def train_experiment(path: Path, out: Path | None, resume: bool) -> dict[str, Any]:
    """Trains, prints where the generator is, and returns the run's figures."""
    from lorage_jax.train.loop import train

    config = load_experiment(path)
    if out is not None:
        config = dataclasses.replace(config, out=str(out))
    result = train(config, resume=resume)
    steps = config.steps - result.first_step
    print(
        f"Trained {steps} steps in {result.seconds:.0f} s"
        + (f", loss {result.losses[0][1]:.3f} -> {result.losses[-1][1]:.3f}" if steps else "")
        + f".\nGenerator: {result.folder}"
    )
    return {
        "generator": str(result.folder),
        "fingerprint": result.fingerprint,
        "steps": config.steps,
        "first_step": result.first_step,
        "losses": result.losses,
        "seconds": result.seconds,
    }
