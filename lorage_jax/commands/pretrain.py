"""`lorage pretrain`: train a small language model from an experiment file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lorage_jax import distributed
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.commands.experiment_options import Pretrain
from lorage_jax.config import PretrainConfig
from lorage_jax.errors import OutputError
from lorage_jax.files.outputs import check_file


def run(options: Pretrain) -> dict[str, Any] | None:
    """Trains, draws `loss.png`, prints the model's folder and returns the run's figures.

    With several processes, only the main one draws, prints and returns them.
    """
    from lorage_jax.report.pictures import loss_curve
    from lorage_jax.train.loop import check_run_folder
    from lorage_jax.train.pretrain import pretrain
    from lorage_jax.train.resume import resume_of
    from lorage_jax.train.watch import read_logs

    distributed.initialise(options.coordinator, options.num_processes, options.process_id)
    with distributed.together():
        config = load_experiment(options.experiment, PretrainConfig)
    if options.out is not None:
        config = dataclasses.replace(config, out=str(options.out))
    resume = resume_of(options.resume, options.resume_step, options.resume_data)
    picture = Path(config.out) / "loss.png"
    with distributed.together():
        check_run_folder(picture.parent, "model", resume is not None)
        check_file(picture, overwrite=True)  # before the long work
        if picture.exists() and resume is None:
            raise OutputError(
                f"{picture} exists, but does not belong to a run; choose another --out."
            )
    result = pretrain(config, resume=resume or False)
    if not distributed.is_main():
        return None
    curve = read_logs(picture.parent / "logs").get("train/loss")  # from step 1, also if resumed
    if curve:
        loss_curve(curve, picture, overwrite=True)
    print(
        f"{result.parameters:,} parameters. Trained {len(result.losses)} steps in "
        f"{result.duration}"
        + (f", loss {curve[0][1]:.3f} -> {curve[-1][1]:.3f}" if curve else "")
        + f".\nModel: {result.folder}"
    )
    return {
        "model": str(result.folder),
        "parameters": result.parameters,
        "steps": config.steps,
        "first_step": result.first_step,
        "losses": result.losses,
        "seconds": result.seconds,
        "programs": result.programs,
        "most_programs": result.most_programs,
        "compile_seconds": result.compile_seconds,
    }
