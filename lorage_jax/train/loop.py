"""One loop for every kind of training: steps, checkpoints, resuming, curves, and bad losses.

A run's folder holds `config.json`, `checkpoints/`, `logs/` (tensorboardX) and its result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lorage_jax.compilation import Compilations, compilation_text
from lorage_jax.config import ExperimentConfig, PretrainConfig
from lorage_jax.data.batches import Batch
from lorage_jax.distributed import check_same, check_shared, is_main, on_main
from lorage_jax.errors import (
    ConfigError,
    DataError,
    OutputError,
    Preempted,
    TrainingError,
    joined,
    listed,
)
from lorage_jax.files.outputs import check_file, check_target, write_file
from lorage_jax.train.checkpoint import Checkpoints, is_url
from lorage_jax.train.preemption import Preemption
from lorage_jax.train.profile import Profile
from lorage_jax.train.resume import ASIDE, Resume, set_aside
from lorage_jax.train.state import TrainState
from lorage_jax.train.watch import Watch

# Fields of a config that may differ between a checkpoint and the run that resumes it.
RESUMABLE = ("out", "steps", "save_every", "keep", "log_every", "mesh", "remat")


@dataclass(frozen=True)
class Job:
    """A run, ready to start.

    Attributes:
        config: gives out, steps, save_every, keep and log_every.
        resolved: the config as it is saved, with the contents of models and data.
        resumable: dotted fields of it that a resumed run may change.
        state: before the first step.
        step: (state, batch on the devices) -> (state, metrics); it may donate the state.
        batches: without end; their iterators have `get_state` and `set_state`.
        describe: the origin of a number in `group_ids`.
        vocabularies: for `prompts`, `queries` and `shown`, whose token ids they hold and how many
            there are.
        place: puts a batch on the devices.
        shapes: the most shapes that batches can have; each needs a compiled program.
        checkpoints: folder or gs://..., instead of one in `out`.
        renamed: fields of the state, by their names in checkpoints of earlier versions.
        flops: arithmetic of a step, for the MFU.
        note: a warning to show before the first step.
    """

    config: ExperimentConfig | PretrainConfig
    resolved: dict[str, Any]
    resumable: tuple[str, ...]
    state: TrainState
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
    batches: Any  # `data.pipeline.Batches`, or a grain data set
    describe: Callable[[int], str]
    vocabularies: Mapping[str, tuple[str, int]]
    place: Callable[[Batch], Batch]
    shapes: int
    checkpoints: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    flops: Callable[[Batch], int] | None = None
    note: str | None = None


@dataclass(frozen=True)
class Finished:
    """A job that has run.

    Attributes:
        state: after the last step.
        losses: (step, loss) of every step of this run.
        first_step: number of steps that were done before.
        programs: number of programs that were compiled for steps.
        most_programs: the most that batches of these settings could need.
        compile_seconds: the time that took.
    """

    state: TrainState
    losses: list[tuple[int, float]]
    first_step: int
    programs: int
    most_programs: int
    compile_seconds: float

    def figures(self, began: float) -> dict[str, Any]:
        """The figures of a `TrainResult` by name; `began` is the time at the start of it all."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "state"}
        return own | {"seconds": time.monotonic() - began}


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run.

    Attributes:
        folder: where the trained model, generator or adapter was written.
        fingerprint: its identity.
        losses: (step, loss in nats per target) of every step of this process's run.
        seconds: wall time, loading and compiling included.
        first_step: number of steps that were done before: 0, or those of the checkpoint.
        programs: number of programs that were compiled for steps, one for each shape of a batch.
        most_programs: the most that batches of these settings could need.
        compile_seconds: the time that took, or reading them from the persistent cache.
    """

    folder: Path
    fingerprint: str
    losses: list[tuple[int, float]]
    seconds: float
    first_step: int
    programs: int
    most_programs: int
    compile_seconds: float

    @property
    def duration(self) -> str:
        """The time, and what of it was compilation, in words."""
        compiled = compilation_text(self.programs, self.compile_seconds, self.most_programs)
        return f"{self.seconds:.0f} s" + (f" ({compiled})" if self.programs else "")


def run(
    job: Job, *, resume: bool | Resume, progress: bool, profile: tuple[int, int] | None = None
) -> Finished:
    """Runs a job to its last step; all processes call.

    `resume`: go on from a checkpoint, if there is one. `steps` may have changed since; the schedule
    of the learning rate is then that of the new number.

    Raises:
        TrainingError: a loss that is not finite (naming step and records), or a checkpoint that is
            damaged or of another config.
        Preempted: SIGTERM came; the last step is saved.
    """
    config, out = job.config, Path(job.config.out)
    _check_profile(profile, 0, config.steps)
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
        how = Resume() if resume is True else resume
        note = job.note
        saved = how and (checkpoints.latest() if how.step is None else how.step)
        if how and saved is not None:
            _check_profile(profile, saved, config.steps)
            state, first, note = _resumed(job, how, checkpoints, stream)
        if is_main():
            text = json.dumps(job.resolved, indent=1) + "\n"
            write_file(out / "config.json", text, overwrite=True)
        watch.start(first)
        if note:
            watch.warn(first, note)
        state = _steps(job, state, stream, checkpoints, watch, preemption, tracing)
    compiled = (watch.programs, job.shapes, watch.compile_seconds)
    return Finished(state, watch.losses, first, *compiled)


def _check_profile(profile: tuple[int, int] | None, first: int, steps: int) -> None:
    """Raises ConfigError unless the steps to trace are of a run from step `first` to `steps`."""
    if profile is None:
        return
    asked = f"--profile asks for steps {profile[0]} to {profile[1]}, but the run"
    if profile[1] > steps:
        raise ConfigError(f"{asked} has {steps} steps. Choose earlier steps, or raise steps.")
    if profile[1] <= first:
        raise ConfigError(f"{asked} goes on after step {first}. Choose later steps.")


def go_back(checkpoints: Checkpoints, step: int) -> None:
    """Sets the checkpoints after `step` aside. All processes must call it.

    Raises TrainingError if there is no checkpoint of that step.
    """
    check_same({"step": step}, "All processes need the same --resume-step.")
    on_main(lambda: set_aside(checkpoints.folder, step))


def _resumed(
    job: Job, how: Resume, checkpoints: Checkpoints, stream: Any
) -> tuple[TrainState, int, str | None]:
    """(state, step of the checkpoint, warning to show); sets the position of the data."""
    steps = job.config.steps
    if how.step is not None:
        go_back(checkpoints, how.step)
    changed = ("data_contents",) if how.changed_data else ()
    state, position, first = checkpoints.restore(
        _abstract(job.state),
        job.resolved,
        step=how.step,
        ignore=(*job.resumable, *changed),
        renamed=job.renamed,
    )
    if first > steps:
        raise TrainingError(
            f"the checkpoint of step {first} is beyond the run's {steps} steps. Raise steps, or "
            "train into another folder."
        )
    stream.set_state(position)
    before = checkpoints.config(first).get("steps", steps)
    notes = [job.note]
    if before != steps:
        notes.append(f"steps was {before}, is {steps}: the learning rate follows the new schedule.")
    if how.step is not None and (checkpoints.folder.parent / ASIDE).is_dir():
        notes.append(f"Checkpoints after step {how.step} are in {ASIDE}.")
    return state, first, joined(*notes)


def check_run_folder(out: Path, result: str, resume: bool) -> None:
    """Raises OutputError when a run cannot write to `out`, or would touch files of others.

    `result`: name of the folder that the run leaves there at the end.
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
    """Raises ConfigError unless `count` rows, described by `what`, divide over the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if count % ways:
        raise ConfigError(
            f"{what} does not divide over {ways} devices (data {mesh.shape['data']} x "
            f"fsdp {mesh.shape['fsdp']}). Make {advice} a multiple of {ways}, or change the mesh."
        )


def _steps(
    job: Job,
    state: TrainState,
    stream: Any,
    checkpoints: Checkpoints,
    watch: Watch,
    preemption: Preemption,
    tracing: Profile,
) -> TrainState:
    """Steps until the last. Metrics are read one step late, while the next one runs."""
    config, saved = job.config, 0  # losses that are in a checkpoint
    known: set[Any] = set()  # shapes of batches
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
        placed = job.place(batch)
        shape = tuple(x.shape for x in jax.tree.leaves(placed))
        if shape not in known:
            known.add(shape)
            settle()  # or a step would run while the next one's program is compiled
        with Compilations() as compiled:
            state, metrics = job.step(state, placed)
        watch.compiled(compiled)
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
                "Continue with --resume."
            )
    settle()
    return state


def _abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings, to restore a checkpoint onto."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _check_ids(batch: Batch, vocabularies: Mapping[str, tuple[str, int]]) -> None:
    """Ids beyond the embedding table would be clamped on the device without a word."""
    for name, (whose, size) in vocabularies.items():
        top = max((int(rows.tokens.max()) for rows in getattr(batch, name)), default=-1)
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
    ids = () if batch.group_ids is None else batch.group_ids
    places = [job.describe(int(i)) for i in ids]
    return (
        f"step {number}: the loss is {loss} (gradient norm {float(metrics['grad_norm'])}). "
        f"The batch came from {listed(places, 8)}. "
        + (f"The checkpoint of step {kept} is kept. " if kept else "No checkpoint was saved yet. ")
        + "Look at these records, or lower the learning rate, and resume."
    )


def _is_run(out: Path) -> bool:
    """True if the folder's config.json is a run's; resuming replaces it."""
    try:
        return "data_contents" in json.loads((out / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
