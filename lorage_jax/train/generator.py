"""`train(config)`: from an experiment to a generator folder, resumable at every checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from lorage_jax import distributed
from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.errors import ConfigError
from lorage_jax.fields import to_dict
from lorage_jax.generator.generator import Generator, trained_leaves
from lorage_jax.generator.store import load_generator, save_generator
from lorage_jax.hf.load import load_model
from lorage_jax.models.model import Model
from lorage_jax.sharding import ShardingRules, make_mesh
from lorage_jax.train.arithmetic import step_flops
from lorage_jax.train.loop import Job, check_divides, check_run_folder, run
from lorage_jax.train.optimizer import make_optimizer
from lorage_jax.train.placement import check_spread
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
    "init",
    "data.sources",
)

# Switches that only training sees: they may differ from those of the generator in `init`.
FREE = ("dropout", "gumbel_temperature", "cv_weight")


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
    checkpoint of another config, ConfigError for a batch that does not fit the devices, or an
    `init` of another kind.
    """
    began = time.time()
    out = Path(config.out)
    with distributed.together():
        mesh, rules = make_mesh(config.mesh, rows=batch_rows(config)), ShardingRules()
        check_devices(config, mesh)
        check_run_folder(out, "generator", resume)
        cloud = load_model(config.cloud, config.dtype, mesh, rules)
        edge = load_model(config.edge, config.dtype, mesh, rules)
        check_models(config, cloud.config, edge.config)
        begun = _beginning(config, cloud, edge) if config.init else None
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
    if begun is not None:
        resolved["init_weights"] = begun.fingerprint
        parts = {"trained": begun.trained, "statistics": begun.statistics}
        places = {name: getattr(shardings, name) for name in parts}
        state = state.replace(**jax.device_put(parts, places))
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


def _beginning(config: ExperimentConfig, cloud: Model, edge: Model) -> Generator:
    """The generator of `init`. ConfigError unless it has this run's switches and edge."""
    begun = load_generator(config.init, cloud)
    if begun.edge_fingerprint != edge.fingerprint:
        raise ConfigError(
            f"init is {config.init}, a generator for another edge (weights "
            f"{begun.edge_fingerprint[:19]}..., here {edge.fingerprint[:19]}...). Train on its "
            "edge, or begin without init."
        )
    found, wanted = to_dict(begun.config), to_dict(config.generator)
    other = [
        f"{name} {found[name]}, here {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name] and name not in FREE
    ]
    if other:
        raise ConfigError(
            f"init is {config.init}, whose generator has other switches: {'; '.join(other)}. Give "
            "this run the same, or begin without init."
        )
    return begun


def batch_rows(config: ExperimentConfig) -> int:
    """Rows that go through the cloud at once: a chunk of a micro-batch, or packed rows."""
    parts = config.optimizer.accumulate * config.data.prompt_chunks
    return config.data.prompts_per_batch // config.data.prompts_per_row // parts


def check_devices(config: ExperimentConfig, mesh: Mesh) -> None:
    """ConfigError unless the prompts of a batch divide over the devices."""
    rows = batch_rows(config)
    if config.data.packed_rows is not None:
        check_divides(rows, f"a batch of {rows} packed rows", mesh, "packed_rows")
        return
    check_divides(
        rows,
        f"a micro-batch (or its prompt chunk) of {rows} prompts",
        mesh,
        "prompts_per_batch / (accumulate x prompt_chunks)",
    )


def check_models(config: ExperimentConfig, cloud: ModelConfig, edge: ModelConfig) -> None:
    """ConfigError unless the models are as deep and their contexts as long as `config` needs."""
    layer = config.generator.hidden_layer
    if layer is not None and not 0 <= layer < cloud.layers:
        raise ConfigError(
            f"hidden_layer is {layer}; the cloud's layers are 0 to {cloud.layers - 1}."
        )
    needed = config.data.max_prompt_tokens + edge.layers
    if needed > cloud.max_positions:
        raise ConfigError(
            f"max_prompt_tokens {config.data.max_prompt_tokens} and {edge.layers} meta "
            f"tokens exceed the cloud's context of {cloud.max_positions}."
        )
    if config.data.max_query_tokens > edge.max_positions:
        raise ConfigError(
            f"max_query_tokens {config.data.max_query_tokens} exceeds the edge's context of "
            f"{edge.max_positions}."
        )
