"""`train(config)`: a run of `lorage train`, for any method with trained parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import jax

from lorage_jax import distributed
from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.pipeline import Batches, make_dataset
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.data.templates import ChatTemplate, TemplateKind
from lorage_jax.errors import ConfigError, joined
from lorage_jax.fields import at_home, require_kind, to_dict
from lorage_jax.hf.arithmetic import arithmetic
from lorage_jax.hf.load import load_model
from lorage_jax.hf.tokenizer import load_tokenizer
from lorage_jax.methods.method import METHODS, Method, get_method
from lorage_jax.methods.turns import recorded_template, run_template
from lorage_jax.models.bits import program_params
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train import loop
from lorage_jax.train.experiment import (
    StepProgram,
    Trainable,
    batch_rows,
    build_step,
    check_devices,
    new_state,
    settings_of,
)
from lorage_jax.train.loop import Job, TrainResult, check_run_folder
from lorage_jax.train.placement import check_spread
from lorage_jax.train.remat import settled_remat
from lorage_jax.train.resume import Resume
from lorage_jax.train.saved import saved_config
from lorage_jax.train.state import TrainState, shardings
from lorage_jax.train.step import device_batch, micro_sharding

DEFAULT = "lora_gen"

# Fields that may differ between a checkpoint and the run that resumes it. Models and data may have
# moved: `cloud_weights` and the like identify them by their contents.
RESUMABLE = (*loop.RESUMABLE, "cloud", "edge", "init", "data.sources")

# Names of methods in checkpoints, where they differ: those of the first versions.
RECORDED = {"lora_gen": None, "lora": "multitask_lora"}


def train(
    config: ExperimentConfig,
    *,
    resume: bool | Resume = False,
    progress: bool = True,
    profile: tuple[int, int] | None = None,
    checkpoints: str | None = None,
) -> TrainResult:
    """Trains `config.method`, by default a generator; all processes of a run must call it.

    Args:
        config: the experiment.
        resume: continue from the latest checkpoint, if there is one.
        progress: show a progress bar.
        profile: first and last step to trace.
        checkpoints: folder or gs://... that all hosts share, instead of `<out>/checkpoints`.

    Returns:
        The folder of the result inside `config.out`, its fingerprint, the losses and the time.

    Raises:
        TrainingError: for a loss that is not finite, and for a checkpoint of another config.
        ConfigError: if method, settings, models, `init`, batch and devices do not fit each other.
    """
    method = _chosen(config)
    began, out, reader = time.monotonic(), Path(config.out), method.prompt_reader()
    checkpoints = checkpoints and at_home(checkpoints)
    with distributed.together():
        layout = Layout(make_mesh(config.mesh, rows=batch_rows(config, reader is not None)))
        check_devices(config, layout.mesh, reader is not None)
        check_run_folder(out, method.result, bool(resume))
    saved = saved_config(config, checkpoints, resume)
    with distributed.together():
        models = _models(method, config, layout)
        configs = {name: model.config for name, model in models.items()}
        program, config = _program(method, config, configs, layout, saved)
        begun = method.begin(config, models)
        turns, batches = _data(method, config, models, saved)
        models = {n: one.replace(template=turns.on(one.tokenizer)) for n, one in models.items()}
        resolved = _resolved(method, config, models, begun) | recorded_template(turns)
    frozen = {name: program_params(model.params) for name, model in models.items()}
    state = _with_parts(new_state(program, frozen, config.seed), begun)
    job = Job(
        config=config,
        resolved=resolved,
        resumable=(*RESUMABLE, *(f"settings.{name}" for name in method.movable)),
        state=state,
        step=lambda state, batch: program.step(state, frozen, batch),
        batches=batches,
        describe=batches.describe,
        vocabularies=_vocabularies(configs, reader),
        place=_placing(method, config, batches, reader is not None, layout),
        shapes=batches.encoder.most_shapes(reader is not None),
        checkpoints=checkpoints,
        flops=program.training.flops,
        note=joined(batches.note, check_spread({"state": state, **frozen}, layout.mesh)),
    )
    done = loop.run(job, resume=resume, progress=progress, profile=profile)
    identity = _write(method, config, models, done.state, out / method.result)
    return TrainResult(out / method.result, identity, **done.figures(began))


def _chosen(config: ExperimentConfig) -> type[Trainable]:
    """The method of a run, whose settings are its own. Raises ConfigError."""
    known = "an ExperimentConfig of lorage_jax.config; `lorage train FILE` reads one from a file"
    require_kind(config, ExperimentConfig, "config", known)
    method = get_trainable(config.method or DEFAULT)
    settings_of(method, config)
    return method


def get_trainable(name: str) -> type[Trainable]:
    """The method registered as `name`. Raises ConfigError if it has nothing to train."""
    method = get_method(name)
    if is_trainable(method):
        return method
    able = sorted(name for name, method in METHODS.items() if is_trainable(method))
    raise ConfigError(f"the method {name} has nothing to train; expected {', '.join(able)}.")


def is_trainable(method: type[Method]) -> TypeGuard[type[Trainable]]:
    """True for a method with trained parts."""
    return Trainable in method.__mro__  # a protocol with attributes, which `issubclass` refuses


def _load(config: ExperimentConfig, name: str, layout: Layout) -> Model:
    return load_model(getattr(config, name), config.dtype, layout)


def _models(method: type[Trainable], config: ExperimentConfig, layout: Layout) -> dict[str, Model]:
    """The frozen models by name, and the teacher, if the method has one with its own weights."""
    models = {name: _load(config, name, layout) for name in method.frozen}
    teacher = method.teacher(config, models["edge"]) if "edge" in models else None
    return models if teacher is None else {**models, "teacher": teacher}


def _check_teacher(teacher: Model | None, turns: TemplateKind) -> None:
    """Raises ConfigError if the teacher was trained in other turns than the run's."""
    if teacher is None or teacher.template is None:
        return
    if teacher.template.identity() != turns.on(teacher.tokenizer).identity():
        raise ConfigError(
            "settings.teacher was trained in other turns than this run's: they differ in "
            "data.template, or in the edge's chat template. Train both in the same turns."
        )


def _with_parts(state: TrainState, begun: tuple[Any, Any, str] | None) -> TrainState:
    """The state with the trained parts and statistics of `Trainable.begin`, if there are any."""
    if begun is None:
        return state
    places = shardings(state)
    trained, statistics = jax.device_put(begun[:2], (places.trained, places.statistics))
    return state.replace(trained=trained, statistics=statistics)


def _write(
    method: type[Trainable],
    config: ExperimentConfig,
    models: Mapping[str, Model],
    state: TrainState,
    folder: Path,
) -> str:
    """Writes the result of a finished run and returns its fingerprint."""
    parts = distributed.to_host((state.trained, state.statistics))
    models = {name: models[name] for name in method.frozen}
    made = method.finish(config, models, *parts)
    with distributed.together():
        if distributed.is_main():
            made.write(folder)
    return made.fingerprint


def _vocabularies(
    configs: Mapping[str, ModelConfig], reader: str | None
) -> dict[str, tuple[str, int]]:
    """For the fields of a batch: the model whose ids they hold, and the size of its vocabulary."""
    fields = {"prompts": reader, "queries": "edge", "shown": "edge"}
    return {f: (name, configs[name].vocab_size) for f, name in fields.items() if name in configs}


def _program(
    method: type[Trainable],
    config: ExperimentConfig,
    models: Mapping[str, ModelConfig],
    layout: Layout,
    saved: dict[str, Any] | None,
) -> tuple[StepProgram, ExperimentConfig]:
    """The step, and the config with `remat` settled; a resumed run keeps what it had."""
    recorded = (saved or {}).get("remat")
    config = settled_remat(method, config, models, layout, recorded=recorded)
    return build_step(method, config, models, layout), config


def _placing(
    method: type[Trainable],
    config: ExperimentConfig,
    batches: Batches,
    prompts: bool,
    layout: Layout,
) -> Callable[[Batch], Batch]:
    """Puts batches on the devices, without their prompts if no model reads them."""
    completed = method.completed(config, batches)

    def place(batch: Batch) -> Batch:
        batch = batch if prompts else batch.replace(prompts=())
        batch = batch if completed is None else completed(batch)
        return device_batch(batch, config.optimizer.accumulate, micro_sharding(layout))

    return place


def _data(
    method: type[Trainable],
    config: ExperimentConfig,
    models: Mapping[str, Model],
    saved: dict[str, Any] | None,
) -> tuple[TemplateKind, Batches]:
    """The turns of the run, and its batches, whose prompts are in the reader's tokens.

    Raises ConfigError if a teacher has other turns.
    """
    tokenizers = {name: _tokenizer(config, models, name) for name in ("cloud", "edge")}
    turns = run_template(config, tokenizers, saved, method.begins_in(config))
    _check_teacher(models.get("teacher"), turns)
    cloud, edge = tokenizers[method.prompt_reader() or "cloud"], tokenizers["edge"]
    in_context, shown = method.edge_reads_prompt(config), method.has_teacher(config)
    return turns, make_dataset(config.data, cloud, edge, config.seed, turns, in_context, shown)


def _tokenizer(config: ExperimentConfig, models: Mapping[str, Model], name: str) -> Any:
    if name in models and models[name].tokenizer is not None:
        return models[name].tokenizer
    return load_tokenizer(Path(getattr(config, name)))


def _resolved(
    method: type[Trainable],
    config: ExperimentConfig,
    models: Mapping[str, Model],
    begun: tuple[Any, Any, str] | None,
) -> dict[str, Any]:
    """The config as recorded in checkpoints, which identifies models and data by their contents."""
    settings = settings_of(method, config)
    if settings is not None and settings == settings_of(method, replace(config, settings=None)):
        config = replace(config, settings=None)  # its defaults
    values = to_dict(config)
    del values["data"]["template"]  # recorded as what it came to
    if values["data"]["assistant_turns"] == "last":  # as in all runs that recorded none
        del values["data"]["assistant_turns"]
    for name, value in method.later.items():  # likewise
        if (values["settings"] or {}).get(name) == value:
            del values["settings"][name]
    return {
        **values,
        "method": RECORDED.get(method.name, method.name),
        **{f"{name}_weights": model.fingerprint for name, model in models.items()},
        **{f"{name}_arithmetic": arithmetic(model.config) for name, model in models.items()},
        **{
            f"{name}_chat_template": model.template.identity()
            for name, model in models.items()
            if isinstance(model.template, ChatTemplate)
        },
        "data_contents": data_fingerprint(config.data.sources),
        **({} if begun is None else {"init_weights": begun[2]}),
    }
