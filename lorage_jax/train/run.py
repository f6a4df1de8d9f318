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
from lorage_jax.errors import ConfigError, DataError, OutputError, TrainingError
from lorage_jax.hf.folder import check_file, check_target, write_file
from lorage_jax.train.checkpoint import Checkpoints
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


def run(job: Job, *, resume: bool, progress: bool) -> tuple[Any, list[tuple[int, float]], int]:
    """(state, (step, loss) of every step of this process, the step it began at).

    Raises TrainingError for a loss that is not finite (naming step and records) and for a
    checkpoint of another config.
    """
    config, out = job.config, Path(job.config.out)
    state, stream, first = job.state, iter(job.batches), 0
    with (
        Checkpoints(out / "checkpoints", config.keep) as checkpoints,
        Watch(out / "logs", config.steps, config.log_every, progress) as watch,
    ):
        if resume and checkpoints.latest() is not None:
            state, position, first = checkpoints.restore(
                _abstract(state), job.resolved, ignore=job.resumable
            )
            stream.set_state(position)
        text = json.dumps(job.resolved, indent=1) + "\n"
        write_file(out / "config.json", text, overwrite=True)
        watch.start(first)
        state = _steps(job, state, stream, checkpoints, watch)
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


def _steps(job: Job, state: Any, stream: Any, checkpoints: Checkpoints, watch: Watch) -> Any:
    """Steps until the last. Metrics are read one step late, while the next one runs."""
    config = job.config
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
        state, metrics = job.step(state, job.place(batch))
        settle()
        pending = (number, metrics, batch)
        if number % config.save_every == 0 or number == config.steps:
            settle()  # only a state whose loss was seen to be finite is saved
            checkpoints.save(number, state, job.resolved, stream.get_state())
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
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    return (
        f"step {number}: the loss is {loss} (gradient norm {float(metrics['grad_norm'])}). "
        f"The batch came from {shown}. "
        + (f"The checkpoint of step {kept} is kept. " if kept else "No checkpoint was saved yet. ")
        + "Look at these records, or lower the learning rate, and resume."
    )


def _is_run(out: Path) -> bool:
    """Whether the folder's config.json is one of ours: what it holds is replaced on resuming."""
    try:
        return "data_contents" in json.loads((out / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
