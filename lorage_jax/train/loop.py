"""One loop for every kind of training: steps, checkpoints, resuming, curves, and bad losses.

A run's folder holds `config.json`, `checkpoints/`, `logs/` (tensorboardX) and what comes of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lorage_jax.config import ExperimentConfig, PretrainConfig
from lorage_jax.distributed import check_same, check_shared, is_main
from lorage_jax.errors import (
    ConfigError,
    DataError,
    OutputError,
    Preempted,
    TrainingError,
    listed,
)
from lorage_jax.files.outputs import check_file, check_target, write_file
from lorage_jax.train.checkpoint import Checkpoints, is_url
from lorage_jax.train.preemption import Preemption
from lorage_jax.train.profile import Profile
from lorage_jax.train.watch import Watch

Batch = dict[str, Any]  # arrays, or tuples of them


@dataclass(frozen=True)
class Job:
    """What is run: `config` gives out, steps, save_every, keep and log_every.

    `resolved`: the config as it is saved, with the contents of models and data; `resumable`: its
    fields that a resumed run may change. `batches`: iterable, iterators with `get_state`.
    `describe`: where a number in `group_ids` comes from. `vocabularies`: of each array of token
    ids, whose they are and how many there may be. `place`: a batch to the devices.
    """

    config: ExperimentConfig | PretrainConfig
    resolved: dict[str, Any]
    resumable: tuple[str, ...]
    state: Any  # with a field `step`
    step: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    batches: Iterable[Batch]
    describe: Callable[[int], str]
    vocabularies: dict[str, tuple[str, int]]
    place: Callable[[Batch], Any]
    checkpoints: str | None = None  # folder or gs://...; None: in `out`
    flops: Callable[[Batch], int] | None = None  # of a step, for the MFU
    note: str | None = None  # what a user should know before the first step


def run(
    job: Job, *, resume: bool, progress: bool, profile: tuple[int, int] | None = None
) -> tuple[Any, list[tuple[int, float]], int]:
    """(state, (step, loss) of every step of this run, the step it began at); all processes call.

    Raises TrainingError for a loss that is not finite (naming step and records) and for a
    checkpoint of another config, Preempted after SIGTERM.
    """
    config, out = job.config, Path(job.config.out)
    if profile is not None and profile[1] > config.steps:
        raise ConfigError(f"steps {profile[0]} to {profile[1]} of a run of {config.steps}.")
    state, stream, first = job.state, iter(job.batches), 0
    check_same(job.resolved, "All processes need the same models, data and experiment.")
    folder = job.checkpoints or out / "checkpoints"
    if not is_url(folder):
        check_shared(Path(folder))
    with (
        Checkpoints(folder, config.keep) as checkpoints,
        Watch(
            out / "logs", config.steps, config.log_every, progress, is_main(), job.flops
        ) as watch,
        Preemption() as preemption,
        Profile(out / "profile", profile if is_main() else None) as tracing,
    ):
        if resume and checkpoints.latest() is not None:
            state, position, first = checkpoints.restore(
                _abstract(state), job.resolved, ignore=job.resumable
            )
            stream.set_state(position)
        if is_main():
            text = json.dumps(job.resolved, indent=1) + "\n"
            write_file(out / "config.json", text, overwrite=True)
        watch.start(first)
        if job.note:
            watch.warn(first, job.note)
        state = _steps(job, state, stream, checkpoints, watch, preemption, tracing)
    return state, watch.losses, first


def check_run_folder(out: Path, result: str, resume: bool) -> None:
    """OutputError when a run cannot write to `out`, or would touch what is not its own.

    `result`: the folder in it that the run leaves at the end.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected a folder for the run.")
    check_file(out / "config.json", overwrite=True)  # can it be written?
    if (out / "config.json").exists() and not _is_run(out):
        raise OutputError(f"{out} holds a config.json of something else; choose another --out.")
    begun = (out / "checkpoints").exists() or (out / "config.json").exists()
    if begun and not resume:
        raise OutputError(
            f"{out} already holds a run. Continue it with --resume, or choose another --out."
        )
    if (out / result).exists():
        check_target(out / result, overwrite=True)


def check_divides(count: int, what: str, mesh: Mesh, advice: str) -> None:
    """ConfigError unless `count` rows, `what` they are, divide over the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if count % ways:
        raise ConfigError(
            f"{what} does not divide over {ways} devices (data {mesh.shape['data']} x "
            f"fsdp {mesh.shape['fsdp']}). Make {advice} a multiple of {ways}, or change the mesh."
        )


def _steps(
    job: Job,
    state: Any,
    stream: Any,
    checkpoints: Checkpoints,
    watch: Watch,
    preemption: Preemption,
    tracing: Profile,
) -> Any:
    """Steps until the last. Metrics are read one step late, while the next one runs."""
    config, saved = job.config, 0  # losses that are in a checkpoint
    pending: tuple[int, dict[str, Any], Batch] | None = None

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        number, metrics, batch = pending
        pending = None
        loss = float(metrics["loss"])
        if not np.isfinite(loss) or not np.isfinite(float(metrics["grad_norm"])):
            raise TrainingError(_not_finite(number, loss, metrics, batch, job, checkpoints))
        watch.record(number, metrics, batch)

    for number in range(int(state.step) + 1, config.steps + 1):
        batch = next(stream)
        _check_ids(batch, job.vocabularies)
        tracing.before(number)
        state, metrics = job.step(state, job.place(batch))
        tracing.after(number, metrics)
        settle()
        pending = (number, metrics, batch)
        last, stop = number == config.steps, preemption.reached(number)
        if number % config.save_every == 0 or last or stop:
            settle()  # only a state whose loss was seen to be finite is saved
            loss = float(np.mean([loss for _, loss in watch.losses[saved:]]))
            checkpoints.save(number, state, job.resolved, stream.get_state(), loss)
            saved = len(watch.losses)
        if stop and not last:
            checkpoints.wait()
            raise Preempted(
                f"stopped by SIGTERM after step {number} of {config.steps}, which is saved. "
                "Go on with --resume."
            )
    settle()
    return state


def _abstract(state: Any) -> Any:
    """Shapes, dtypes and shardings, to restore a checkpoint onto."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _check_ids(batch: Batch, vocabularies: dict[str, tuple[str, int]]) -> None:
    """Ids beyond the embedding table would be clamped on the device without a word."""
    for name, (whose, size) in vocabularies.items():
        top = max(int(x.max()) for x in jax.tree.leaves(batch[name]))
        if top >= size:
            raise DataError(
                f"the {whose}'s tokenizer gives id {top}, but its vocabulary is 0 to {size - 1}. "
                f"The tokenizer files in the {whose} folder belong to another model."
            )


def _not_finite(
    number: int,
    loss: float,
    metrics: dict[str, Any],
    batch: Batch,
    job: Job,
    checkpoints: Checkpoints,
) -> str:
    checkpoints.wait()
    kept = checkpoints.latest()
    places = [job.describe(int(i)) for i in batch["group_ids"]]
    return (
        f"step {number}: the loss is {loss} (gradient norm {float(metrics['grad_norm'])}). "
        f"The batch came from {listed(places, 8)}. "
        + (f"The checkpoint of step {kept} is kept. " if kept else "No checkpoint was saved yet. ")
        + "Look at these records, or lower the learning rate, and resume."
    )


def _is_run(out: Path) -> bool:
    """Whether the folder's config.json is one of ours: what it holds is replaced on resuming."""
    try:
        return "data_contents" in json.loads((out / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
