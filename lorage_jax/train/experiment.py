"""A run of `lorage train`: any method with trained parts, through the one step and the one loop."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
from jax.sharding import Mesh

from lorage_jax import distributed
from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.pipeline import Batches, make_dataset
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.errors import ConfigError
from lorage_jax.fields import to_dict
from lorage_jax.hf.load import load_model, load_tokenizer
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train import loop
from lorage_jax.train.loop import Job, TrainResult, check_divides, check_run_folder
from lorage_jax.train.optimizer import learning_rate, make_optimizer
from lorage_jax.train.placement import check_spread
from lorage_jax.train.state import (
    TrainState,
    abstract_arrays,
    abstract_state,
    first_state,
    shardings,
)
from lorage_jax.train.step import LossFn, device_batch, make_step, micro_sharding

# Fields that may differ between a checkpoint and the run that resumes it. Models and data may lie
# elsewhere: `cloud_weights` and the like identify them by their contents.
RESUMABLE = (*loop.RESUMABLE, "cloud", "edge", "init", "data.sources")

READ_BY = {"cloud": "prompts", "edge": "queries"}  # fields of a batch

# Names of methods in checkpoints: those of the first versions.
RECORDED = {"lora_gen": None, "lora": "multitask_lora"}


@dataclass(frozen=True)
class Training:
    """The trained parts of a method for a pair of models, and their loss.

    Attributes:
        leaves: shapes, axes and initial values of the trained parts, a tree of `Leaf`.
        loss: of a micro-batch; its `frozen` holds the parameters of the frozen models by name.
        statistics: leaves of running statistics that no gradient changes.
        new: (frozen, key) -> (trained, statistics), instead of the leaves' own initial values.
        flops: arithmetic of a step on a batch, for the MFU.
    """

    leaves: Any
    loss: LossFn
    statistics: Any = field(default_factory=dict)
    new: Callable[[Any, jax.Array], tuple[Any, Any]] | None = None
    flops: Callable[[Batch], int] | None = None


@dataclass(frozen=True)
class Trained:
    """The outcome of a run: its identity, and how the main process writes it to a folder."""

    fingerprint: str
    write: Callable[[Path], None]


class Trainable(Protocol):
    """A method with trained parts: everything that `lorage train` needs to know of it.

    Attributes:
        name: the method's; `ExperimentConfig.method` gives it.
        result: name of the folder that a run leaves in its own.
        frozen: models whose weights it reads, of "cloud" and "edge". Without the cloud, its
            tokenizer is read all the same, so that all methods see the same batches.
    """

    name: ClassVar[str]
    result: ClassVar[str]
    frozen: ClassVar[tuple[str, ...]]

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        """The trained parts and their loss. ConfigError if the models do not fit `config`."""
        ...

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        """The outcome, made of the trained parts as numpy arrays."""
        ...

    @classmethod
    def begin(
        cls, config: ExperimentConfig, models: Mapping[str, Model]
    ) -> tuple[Any, Any, str] | None:
        """(trained, statistics, fingerprint) of the folder `config.init`; None: begin afresh."""
        if config.init:
            raise ConfigError(
                f"init is {config.init}, but {cls.name} always begins afresh; leave init out."
            )
        return None


@dataclass(frozen=True)
class StepProgram:
    """A method's step for a pair of models, with its arguments as shapes with shardings."""

    training: Training
    step: Any  # a jitted `train.step.Step`
    state: TrainState
    frozen: dict[str, Any]
    optimizer: Any


def build_step(
    method: type[Trainable],
    config: ExperimentConfig,
    models: Mapping[str, ModelConfig],
    layout: Layout,
) -> StepProgram:
    """Builds the jitted step and the shapes of its arguments; no array is made.

    `models`: configurations by name, of those in `method.frozen`.
    """
    training = method.training(config, models, layout)
    optimizer = make_optimizer(config.optimizer, config.steps, training.leaves)
    state = abstract_state(training.leaves, training.statistics, optimizer, layout)
    frozen = {
        name: abstract_arrays(model_leaves(models[name]), config.dtype, layout)
        for name in method.frozen
    }
    step = make_step(
        training.loss,
        optimizer,
        learning_rate(config.optimizer, config.steps),
        accumulate=config.optimizer.accumulate,
        shardings=shardings(state),
        frozen=shardings(frozen),
        layout=layout,
    )
    return StepProgram(training, step, state, frozen, optimizer)


def new_state(program: StepProgram, frozen: dict[str, Any], seed: int) -> TrainState:
    """The state before the first step, made in place under its shardings."""
    training = program.training

    def build(frozen: dict[str, Any]) -> TrainState:
        init_key, run_key = jax.random.split(jax.random.PRNGKey(seed))
        if training.new is not None:
            trained, statistics = training.new(frozen, init_key)
        else:
            trained = initialise(training.leaves, init_key)
            statistics = initialise(training.statistics, init_key)
        return first_state(trained, statistics, program.optimizer, run_key)

    return jax.jit(build, out_shardings=shardings(program.state))(frozen)


def train_method(
    method: type[Trainable],
    config: ExperimentConfig,
    *,
    resume: bool = False,
    progress: bool = True,
    profile: tuple[int, int] | None = None,
    checkpoints: str | None = None,
) -> TrainResult:
    """Trains a method and writes it to `<out>/<method.result>`; all processes call.

    Args:
        resume: go on from the latest checkpoint, if there is one.
        progress: show a progress bar.
        profile: first and last step to trace.
        checkpoints: folder or gs://... that all hosts share, instead of `<out>/checkpoints`.

    Raises:
        TrainingError: a loss that is not finite (naming step and records), or a checkpoint of
            another config.
        ConfigError: a batch that does not fit the devices, models that do not fit the config.
    """
    began, out = time.time(), Path(config.out)
    reads_prompts = "cloud" in method.frozen
    with distributed.together():
        mesh = make_mesh(config.mesh, rows=batch_rows(config, reads_prompts))
        layout = Layout(mesh)
        check_devices(config, mesh, reads_prompts)
        check_run_folder(out, method.result, resume)
        models = {name: _load(config, name, layout) for name in method.frozen}
        configs = {name: model.config for name, model in models.items()}
        program = build_step(method, config, configs, layout)
        begun = method.begin(config, models)
        batches = _batches(config, models)
        resolved = _resolved(method, config, models)
    frozen = {name: model.params for name, model in models.items()}
    state = new_state(program, frozen, config.seed)
    if begun is not None:
        state, resolved["init_weights"] = _with_parts(state, begun), begun[2]
    job = Job(
        config=config,
        resolved=resolved,
        resumable=RESUMABLE,
        state=state,
        step=lambda state, batch: program.step(state, frozen, batch),
        batches=batches,
        describe=batches.describe,
        vocabularies={READ_BY[name]: (name, one.vocab_size) for name, one in configs.items()},
        place=functools.partial(_place, config=config, models=models, layout=layout),
        checkpoints=checkpoints,
        flops=program.training.flops,
        note=check_spread({"state": state, **frozen}, mesh),
    )
    state, losses, first = loop.run(job, resume=resume, progress=progress, profile=profile)
    parts = distributed.to_host((state.trained, state.statistics))
    made, folder = method.finish(config, models, *parts), out / method.result
    with distributed.together():
        if distributed.is_main():
            made.write(folder)
    return TrainResult(folder, made.fingerprint, losses, time.time() - began, first)


def _load(config: ExperimentConfig, name: str, layout: Layout) -> Model:
    return load_model(getattr(config, name), config.dtype, layout)


def _with_parts(state: TrainState, begun: tuple[Any, Any, str]) -> TrainState:
    """The state with the trained parts and statistics of `Trainable.begin`."""
    places = shardings(state)
    trained, statistics = jax.device_put(begun[:2], (places.trained, places.statistics))
    return state.replace(trained=trained, statistics=statistics)


def _place(
    batch: Batch, *, config: ExperimentConfig, models: Mapping[str, Model], layout: Layout
) -> Batch:
    """The batch on the devices, without the prompts if no model reads them."""
    batch = batch if "cloud" in models else batch.replace(prompts=())
    return device_batch(batch, config.optimizer.accumulate, micro_sharding(layout))


def _batches(config: ExperimentConfig, models: Mapping[str, Model]) -> Batches:
    def tokenizer(name: str) -> Any:
        if name in models:
            return models[name].tokenizer
        return load_tokenizer(Path(getattr(config, name)))

    return make_dataset(config.data, tokenizer("cloud"), tokenizer("edge"), config.seed)


def _resolved(
    method: type[Trainable], config: ExperimentConfig, models: Mapping[str, Model]
) -> dict[str, Any]:
    """The config as checkpoints record it: models and data by their contents."""
    return {
        **to_dict(config),
        "method": RECORDED.get(method.name, method.name),
        **{f"{name}_weights": model.fingerprint for name, model in models.items()},
        "data_contents": data_fingerprint(config.data.sources),
    }


def batch_rows(config: ExperimentConfig, reads_prompts: bool = True) -> int:
    """Rows that go through the first model at once: a chunk of a micro-batch, or packed rows."""
    if config.data.packed_rows is not None:
        return config.data.packed_rows
    parts = config.optimizer.accumulate * config.data.prompt_chunks
    return (config.data.prompts_per_batch if reads_prompts else config.data.rows) // parts


def check_devices(config: ExperimentConfig, mesh: Mesh, reads_prompts: bool = True) -> None:
    """ConfigError unless the rows of a batch divide over the devices."""
    rows = batch_rows(config, reads_prompts)
    if config.data.packed_rows is not None:
        check_divides(rows, f"a batch of {rows} packed rows", mesh, "packed_rows")
        return
    kind = "prompts" if reads_prompts else "rows"
    count = "prompts_per_batch" if reads_prompts else "prompts_per_batch x queries_per_prompt"
    check_divides(
        rows,
        f"a micro-batch (or its prompt chunk) of {rows} {kind}",
        mesh,
        f"{count} / (accumulate x prompt_chunks)",
    )
