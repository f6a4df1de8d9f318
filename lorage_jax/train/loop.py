"""`train(config)`: from an experiment to a generator folder, resumable at every checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from lorage_jax import distributed
from lorage_jax.config import ExperimentConfig
from lorage_jax.data.pipeline import data_fingerprint, make_dataset
from lorage_jax.errors import ConfigError
from lorage_jax.fields import to_dict
from lorage_jax.generator.generator import Generator, trained_leaves
from lorage_jax.generator.store import save_generator
from lorage_jax.hf.load import load_model
from lorage_jax.models.model import Model
from lorage_jax.sharding import ShardingRules, make_mesh
from lorage_jax.train.arithmetic import step_flops
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.placement import check_spread
from lorage_jax.train.run import Job, check_divides, check_run_folder, run
from lorage_jax.train.state import new_state, state_shardings
from lorage_jax.train.step import device_batch, make_train_step, micro_sharding

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


def train(
    config: ExperimentConfig,
    *,
    resume: bool = False,
    progress: bool = True,
    profile: tuple[int, int] | None = None,
    checkpoints: str | None = None,
) -> TrainResult:
    """Trains a generator and writes it to `<out>/generator`.

    `profile`: first and last step to trace. `checkpoints`: folder or gs://... that all hosts share,
    instead of `<out>/checkpoints`.

    Raises TrainingError for a loss that is not finite (naming step and records) and for a
    checkpoint of another config, ConfigError for a batch that does not fit the devices.
    """
    began = time.time()
    out = Path(config.out)
    with distributed.together():
        mesh, rules = make_mesh(config.mesh), ShardingRules()
        _check_devices(config, mesh)
        check_run_folder(out, "generator", resume)
        cloud = load_model(config.cloud, config.dtype, mesh, rules)
        edge = load_model(config.edge, config.dtype, mesh, rules)
        _check_models(config, cloud, edge)
        batches = make_dataset(config.data, cloud.tokenizer, edge.tokenizer, config.seed)
        # A checkpoint knows its models and data by their contents: they may move, but not change.
        resolved = to_dict(config) | {
            "cloud_weights": cloud.fingerprint,
            "edge_weights": edge.fingerprint,
            "data_contents": data_fingerprint(config.data.sources),
        }
    leaves = trained_leaves(config.generator, cloud.config, edge.config)
    optimizer = make_optimizer(config.optimizer, config.steps, leaves)
    models = (config.generator, cloud.config, edge.config)
    shardings = state_shardings(*models, optimizer, mesh, rules)
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
    rows = micro_sharding(rules, mesh)
    job = Job(
        config=config,
        resolved=resolved,
        resumable=RESUMABLE,
        state=state,
        step=lambda state, batch: step_fn(state, frozen, batch),
        batches=batches,
        describe=batches.describe,
        vocabularies={
            "prompt_tokens": ("cloud", cloud.config.vocab_size),
            "query_tokens": ("edge", edge.config.vocab_size),
        },
        place=lambda batch: device_batch(batch, config.optimizer.accumulate, rows),
        checkpoints=checkpoints,
        flops=lambda batch: step_flops(*models, batch),
        note=check_spread({"state": state, **frozen}, mesh),
    )
    state, losses, first = run(job, resume=resume, progress=progress, profile=profile)
    generator = Generator(
        config=config.generator,
        cloud=cloud,
        edge=edge.config,
        edge_fingerprint=edge.fingerprint,
        trained=distributed.to_host(state.trained),
        statistics=distributed.to_host(state.statistics),
        edge_source=edge.source,
        about={"steps": config.steps, "seed": config.seed, "dtype": config.dtype},
    )
    with distributed.together():
        if distributed.is_main():
            save_generator(generator, out / "generator", overwrite=True)
    seconds = time.time() - began
    return TrainResult(out / "generator", generator.fingerprint, losses, seconds, first)


def _check_devices(config: ExperimentConfig, mesh: Mesh) -> None:
    parts = config.optimizer.accumulate * config.data.prompt_chunks
    prompts = config.data.prompts_per_batch // parts
    check_divides(
        prompts,
        f"a micro-batch (or its prompt chunk) of {prompts} prompts",
        mesh,
        "prompts_per_batch / (accumulate x prompt_chunks)",
    )


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
