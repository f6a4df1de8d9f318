"""The interface of methods with trained parts, and the training step that is built from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
from jax.sharding import Mesh

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.pipeline import Batches
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError
from lorage_jax.generator.store import read_values
from lorage_jax.models.bits import program_params
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.loop import check_divides
from lorage_jax.train.optimizer import learning_rate, make_optimizer
from lorage_jax.train.state import (
    TrainState,
    abstract_arrays,
    abstract_state,
    first_state,
    shardings,
)
from lorage_jax.train.step import LossFn, make_step

# Fields of an experiment that its step does not depend on; of `data`, the sources.
NOT_IN_STEP = ("cloud", "edge", "out", "data", "init", "seed", "save_every", "keep", "log_every")


@dataclass(frozen=True)
class Training:
    """The trained parts of a method for a pair of models, and their loss.

    Attributes:
        leaves: shapes, axes and initial values of the trained parts, a tree of `Leaf`.
        loss: the loss of a micro-batch; its `frozen` holds the frozen models' parameters by name.
        statistics: leaves of running statistics, which no gradient changes.
        new: (frozen, key) -> (trained, statistics), instead of the leaves' own initial values.
        flops: FLOPs of a step on a batch, for the MFU.
        shared: whether the loss depends on the experiment's settings and the models' configurations
            alone, so that runs which differ in seed, data or folders share one program. False for a
            loss that holds what was read from a file.
    """

    leaves: Any
    loss: LossFn
    statistics: Any = field(default_factory=dict)
    new: Callable[[Any, jax.Array], tuple[Any, Any]] | None = None
    flops: Callable[[Batch], int] | None = None
    shared: bool = True


@dataclass(frozen=True)
class Trained:
    """The result of a run: its fingerprint, and a function that writes it to a folder."""

    fingerprint: str
    write: Callable[[Path], None]


class Trainable(Protocol):
    """A method with trained parts: everything that `lorage train` needs to know about it.

    Attributes:
        name: name of the method, as in `ExperimentConfig.method`.
        result: name of the result's folder, inside the run's folder.
        frozen: the models whose weights it uses, "cloud" and "edge" or one of them. The cloud's
            tokenizer is always loaded, so that all methods train on the same batches.
        settings: the dataclass of `ExperimentConfig.settings`; None if it has none of its own.
        movable: places in the settings, which may differ in a resumed run; contents are compared.
        later: settings that earlier versions lacked, with the value that stands for their runs.
    """

    name: ClassVar[str]
    result: ClassVar[str]
    frozen: ClassVar[tuple[str, ...]]
    settings: ClassVar[type | None] = None
    movable: ClassVar[tuple[str, ...]] = ()
    later: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def prompt_reader(cls) -> str | None:
        """The model that reads the system prompts of a batch, by its tokenizer; None if none does.

        By default the cloud, if it is in `frozen`.
        """
        return "cloud" if "cloud" in cls.frozen else None

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        """The trained parts and their loss.

        Raises ConfigError if the models do not fit `config`.
        """
        ...

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        """Makes the result from the trained parts and statistics, given as numpy arrays."""
        ...

    @classmethod
    def edge_reads_prompt(cls, config: ExperimentConfig) -> bool:
        """True if the edge reads the system prompt before each query, in training as later."""
        return False

    @classmethod
    def has_teacher(cls, config: ExperimentConfig) -> bool:
        """True if batches also hold the queries after their system prompts, for a teacher."""
        return False

    @classmethod
    def teacher(cls, config: ExperimentConfig, edge: Model) -> Model | None:
        """The teacher, where it has other weights than the edge: frozen, of the edge's shape."""
        return None

    @classmethod
    def completed(
        cls, config: ExperimentConfig, batches: Batches
    ) -> Callable[[Batch], Batch] | None:
        """Returns a function that adds what else the loss needs to a batch of the host.

        That is `sources` or `vectors`; None if it needs neither.
        """
        return None

    @classmethod
    def longest(cls, config: ExperimentConfig, batch: Batch) -> Batch:
        """The shapes of the longest batch with what `completed` adds, and the same shardings."""
        return batch

    @classmethod
    def begin(
        cls, config: ExperimentConfig, models: Mapping[str, Model]
    ) -> tuple[Any, Any, str] | None:
        """(trained, statistics, fingerprint) of the folder `config.init`, or None without one.

        By default, raises ConfigError if `config.init` is set.
        """
        if config.init:
            raise ConfigError(
                f"init is {config.init}, but {cls.name} cannot continue from a folder; leave init "
                "out."
            )
        return None

    @classmethod
    def begins_in(cls, config: ExperimentConfig) -> TemplateKind | None:
        """The turns of what the run begins with, which it keeps; None if it begins anew.

        By default those of the generator `config.init`.
        """
        return TemplateKind.of(read_values(config.init)) if config.init else None


def settings_of(method: type[Trainable], config: ExperimentConfig) -> Any:
    """The method's own settings in `config`, or their defaults; None if it has none.

    Raises ConfigError for the settings of another method.
    """
    kind, found = method.settings, config.settings
    if found is None:
        return None if kind is None else kind()
    if kind is None or not isinstance(found, kind):
        expected = "None" if kind is None else f"a {kind.__name__}"
        raise ConfigError(
            f"settings is a {type(found).__name__}; the method {method.name} expects {expected}."
        )
    return found


@dataclass(frozen=True)
class StepProgram:
    """A method's step for a pair of models, with abstract arguments (shapes and shardings)."""

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
    """Builds the jitted step and its abstract arguments; no array is made.

    `models` holds the configurations of the models in `method.frozen`, by name, and of a "teacher"
    with weights of its own. `config.remat` is none or full (see `train.remat`). A process that
    trains again with other seeds, data or folders gets the same step, which is compiled.
    """
    assert config.remat != "auto", "remat is settled before a step is built"
    training = method.training(config, models, layout)
    optimizer = make_optimizer(config.optimizer, config.steps, training.leaves)
    state = abstract_state(training.leaves, training.statistics, optimizer, layout)
    frozen = {
        name: program_params(abstract_arrays(model_leaves(models[name]), config.dtype, layout))
        for name in (*method.frozen, *(("teacher",) if "teacher" in models else ()))
    }

    def make() -> Any:
        return make_step(
            training.loss,
            optimizer,
            learning_rate(config.optimizer, config.steps),
            accumulate=config.optimizer.accumulate,
            shardings=shardings(state),
            frozen=shardings(frozen),
            layout=layout,
        )

    arrays, structure = jax.tree.flatten((state, frozen))
    depends = (method, _settings(config), tuple(models.items()), layout, tuple(arrays), structure)
    step = _shared_step(_StepOf(depends, make)) if training.shared else make()
    return StepProgram(training, step, state, frozen, optimizer)


@dataclass(frozen=True)
class _StepOf:
    """A step by all that it depends on; equal ones are the same program."""

    depends: tuple[Any, ...]
    make: Callable[[], Any] = field(compare=False)


@functools.lru_cache(maxsize=4)
def _shared_step(wanted: _StepOf) -> Any:
    return wanted.make()


def _settings(config: ExperimentConfig) -> tuple[Any, ...]:
    """The settings of a run without its folders, seed, data and record."""
    data = tuple(getattr(config.data, f.name) for f in fields(config.data) if f.name != "sources")
    return data, *(getattr(config, f.name) for f in fields(config) if f.name not in NOT_IN_STEP)


def new_state(program: StepProgram, frozen: dict[str, Any], seed: int) -> TrainState:
    """The state before the first step, created directly under its shardings."""
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


def batch_rows(config: ExperimentConfig, reads_prompts: bool = True) -> int:
    """Rows that the first model reads at once: packed rows, or a chunk of a micro-batch."""
    if config.data.packed_rows is not None:
        return config.data.packed_rows
    parts = config.optimizer.accumulate * config.data.prompt_chunks
    return (config.data.prompts_per_batch if reads_prompts else config.data.rows) // parts


def check_devices(config: ExperimentConfig, mesh: Mesh, reads_prompts: bool = True) -> None:
    """Raises ConfigError if the rows of a batch do not divide over the devices."""
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
