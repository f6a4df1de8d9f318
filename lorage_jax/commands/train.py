"""`lorage train`: train a generator, or another method, from an experiment file."""

from __future__ import annotations

import dataclasses
from typing import Any

from lorage_jax import distributed
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.commands.experiment_options import Train


def run(options: Train) -> dict[str, Any] | None:
    """Trains, prints the folder of the result and returns the run's figures.

    With several processes, only the main one prints and returns them.
    """
    from lorage_jax.methods.training import train
    from lorage_jax.train.profile import parse_steps
    from lorage_jax.train.resume import resume_of

    distributed.initialise(options.coordinator, options.num_processes, options.process_id)
    with distributed.together():
        config = load_experiment(options.experiment)
        profile = parse_steps(options.profile) if options.profile is not None else None
    if options.out is not None:
        config = dataclasses.replace(config, out=str(options.out))
    resume = resume_of(options.resume, options.resume_step, options.resume_data)
    result = train(config, resume=resume or False, profile=profile, checkpoints=options.checkpoints)
    if not distributed.is_main():
        return None
    steps = config.steps - result.first_step
    print(
        f"Trained {steps} steps in {result.duration}"
        + (f", loss {result.losses[0][1]:.3f} -> {result.losses[-1][1]:.3f}" if steps else "")
        + f".\n{result.folder.name.capitalize()}: {result.folder}"
    )
    return {
        result.folder.name: str(result.folder),
        "fingerprint": result.fingerprint,
        "steps": config.steps,
        "first_step": result.first_step,
        "losses": result.losses,
        "seconds": result.seconds,
        "programs": result.programs,
        "most_programs": result.most_programs,
        "compile_seconds": result.compile_seconds,
    }
