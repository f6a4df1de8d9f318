"""`train(config)`: from an experiment to a generator folder, resumable at every checkpoint.

The run's folder holds `config.json`, `checkpoints/`, `logs/` (tensorboardX) and, at the end,
`generator/`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lorage_jax.config import ExperimentConfig, to_dict
from lorage_jax.data.pipeline import Batches, data_fingerprint, make_dataset
from lorage_jax.errors import ConfigError, DataError, OutputError, TrainingError
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.store import save_generator
from lorage_jax.hf.folder import check_file, check_target, write_file
from lorage_jax.hf.load import load_model
from lorage_jax.models.model import Model
from lorage_jax.sharding import ShardingRules, make_mesh
from lorage_jax.train.checkpoint import Checkpoints
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.state import TrainState, abstract_state, new_state, state_shardings
from lorage_jax.train.step import device_batch, make_train_step, micro_sharding
from lorage_jax.train.watch import Watch

# What may differ between a checkpoint and the run that resumes it.
RESUMABLE = (
    "out",
    "save_every",
    "keep",
    "log_every",
    "mesh",
    "remat",
    "cloud",  # where these are; `cloud_weights` and the like say what they are
    "edge",
    "data.sources",
)


@dataclass(frozen=True)
class TrainResult:
    """`folder`: the generator's, for `load_generator`; `fingerprint`: its identity.

    `losses`: (step, loss) at every step of this process's run.
    """

    folder: Path
    fingerprint: str
    losses: list[tuple[int, float]]
    seconds: float
    first_step: int


def train(config: ExperimentConfig, *, resume: bool = False, progress: bool = True) -> TrainResult:
    """Trains a generator and writes it to `<out>/generator`.

    Raises TrainingError for a loss that is not finite (naming step and records) and for a
    checkpoint of another config, ConfigError for a batch that does not fit the devices.
    """
    began = time.time()
    out = Path(config.out)
    mesh, rules = make_mesh(config.mesh), ShardingRules()
    _check_devices(config, mesh)
    _check_folder(out, resume)
    cloud = load_model(config.cloud, config.dtype, mesh, rules)
    edge = load_model(config.edge, config.dtype, mesh, rules)
    _check_models(config, cloud, edge)
    batches = make_dataset(config.data, cloud.tokenizer, edge.tokenizer, config.seed)

    # A checkpoint knows its models and data by their contents: they may move, but not change.
    resolved = to_dict(config) | {
        "cloud_weights": cloud.fingerprint,
        "edge_weights": edge.fingerprint,
        "data_contents": data_fingerprint(config.data),
    }
    optimizer = make_optimizer(config.optimizer, config.steps)
    parts = (config.generator, cloud.config, edge.config, optimizer)
    shardings = state_shardings(*parts, mesh, rules)
    state = new_state(config.generator, cloud, edge.config, optimizer, config.seed, shardings)
    frozen = {"cloud": cloud.params, "edge": edge.params}
    step_fn = make_train_step(
        config,
        cloud.config,
        edge.config,
        optimizer,
        shardings,
        jax.tree.map(lambda x: x.sharding, frozen),
        mesh,
        rules,
    )
    stream = iter(batches)
    with (
        Checkpoints(out / "checkpoints", config.keep) as checkpoints,
        Watch(out / "logs", config, progress) as watch,
    ):
        first = 0
        if resume and checkpoints.latest() is not None:
            state, position, first = checkpoints.restore(
                abstract_state(state), resolved, ignore=RESUMABLE
            )
            stream.set_state(position)
        write_file(out / "config.json", json.dumps(resolved, indent=1) + "\n", overwrite=True)
        watch.start(first)
        sizes = {"cloud": cloud.config.vocab_size, "edge": edge.config.vocab_size}
        run = (resolved, stream, batches, sizes, micro_sharding(rules, mesh), checkpoints, watch)
        state = _run(config, state, frozen, step_fn, *run)

    generator = Generator(
        config=config.generator,
        cloud=cloud,
        edge=edge.config,
        edge_fingerprint=edge.fingerprint,
        trained=state.trained,
        statistics=state.statistics,
        edge_source=edge.source,
        about={"steps": config.steps, "seed": config.seed, "dtype": config.dtype},
    )
    save_generator(generator, out / "generator", overwrite=True)
    seconds = time.time() - began
    return TrainResult(out / "generator", generator.fingerprint, watch.losses, seconds, first)


def _run(
    config: ExperimentConfig,
    state: TrainState,
    frozen: dict[str, Any],
    step_fn: Any,
    resolved: dict[str, Any],
    stream: Any,
    batches: Batches,
    vocabularies: dict[str, int],
    sharding: NamedSharding,
    checkpoints: Checkpoints,
    watch: Watch,
) -> TrainState:
    """Steps until `config.steps`. Metrics are read one step late, while the next one runs."""
    pending: tuple[int, dict[str, Any], dict[str, np.ndarray]] | None = None

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        number, metrics, batch = pending
        pending = None
        loss = float(metrics["loss"])
        if not np.isfinite(loss) or not np.isfinite(float(metrics["grad_norm"])):
            raise TrainingError(_not_finite(number, loss, metrics, batch, batches, checkpoints))
        watch.record(number, metrics, batch)

    for number in range(int(state.step) + 1, config.steps + 1):
        batch = next(stream)
        _check_ids(batch, vocabularies)
        state, metrics = step_fn(
            state, frozen, device_batch(batch, config.optimizer.accumulate, sharding)
        )
        settle()
        pending = (number, metrics, batch)
        if number % config.save_every == 0 or number == config.steps:
            settle()  # only a state whose loss was seen to be finite is saved
            checkpoints.save(number, state, resolved, stream.get_state())
    settle()
    return state


def _check_ids(batch: dict[str, np.ndarray], vocabularies: dict[str, int]) -> None:
    """Ids beyond the embedding table would be clamped on the device without a word."""
    for role, name in (("cloud", "prompt_tokens"), ("edge", "query_tokens")):
        top, size = int(batch[name].max()), vocabularies[role]
        if top >= size:
            raise DataError(
                f"the {role}'s tokenizer gives id {top}, but its vocabulary is 0 to {size - 1}. "
                f"The tokenizer files in the {role} folder belong to another model."
            )


def _not_finite(
    number: int,
    loss: float,
    metrics: dict[str, Any],
    batch: dict[str, np.ndarray],
    batches: Batches,
    checkpoints: Checkpoints,
) -> str:
    checkpoints.wait()
    kept = checkpoints.latest()
    places = [batches.describe(int(i)) for i in batch["group_ids"]]
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    return (
        f"step {number}: the loss is {loss} (gradient norm {float(metrics['grad_norm'])}). "
        f"The batch came from {shown}. "
        + (f"The checkpoint of step {kept} is kept. " if kept else "No checkpoint was saved yet. ")
        + "Look at these records, or lower the learning rate, and resume."
    )


def _check_devices(config: ExperimentConfig, mesh: Mesh) -> None:
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    prompts = config.data.prompts_per_batch // config.optimizer.accumulate
    if prompts % ways:
        raise ConfigError(
            f"a micro-batch of {prompts} prompts does not divide over {ways} devices "
            f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}). Make prompts_per_batch / "
            f"accumulate a multiple of {ways}, or change the mesh."
        )


def _check_folder(out: Path, resume: bool) -> None:
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
    if (out / "generator").exists():
        check_target(out / "generator", overwrite=True)


def _is_run(out: Path) -> bool:
    """Whether the folder's config.json is one of ours: what it holds is replaced on resuming."""
    try:
        return "cloud_weights" in json.loads((out / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _check_models(config: ExperimentConfig, cloud: Model, edge: Model) -> None:
    layer = config.generator.hidden_layer
    if layer is not None and not 0 <= layer < cloud.config.layers:
        raise ConfigError(
            f"hidden_layer is {layer}; the cloud's layers are 0 to {cloud.config.layers - 1}."
        )
    needed = config.data.max_prompt_tokens + edge.config.layers
    if needed > cloud.config.max_positions:
        raise ConfigError(
            f"max_prompt_tokens {config.data.max_prompt_tokens} and {edge.config.layers} meta "
            f"tokens exceed the cloud's context of {cloud.config.max_positions}."
        )
    if config.data.max_query_tokens > edge.config.max_positions:
        raise ConfigError(
            f"max_query_tokens {config.data.max_query_tokens} exceeds the edge's context of "
            f"{edge.config.max_positions}."
        )
