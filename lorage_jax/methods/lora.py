"""A baseline: one LoRA on the edge's FFN for all tasks, trained without any prompt.

It sees the batches of `train.loop` (same config, same seed, same examples), but nobody reads their
prompts: what it gains over the bare edge is what can be learnt about the tasks as a whole. Its
LoRA is a pool of one expert whose gate is always 1, with rank, alpha and dropout of
`config.generator`, so the rank is that of a LoRA that a generator with `factors` assembles.

The folder: `lora.safetensors` (arrays of the pool) and `lorage.json` (rank, alpha, whose edge).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import to_dict
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.files.outputs import MANIFEST, new_folder, write_manifest
from lorage_jax.files.safetensors import read_tensors, save
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import flatten
from lorage_jax.generator.merge import merge
from lorage_jax.generator.pool import PROJECTIONS, Pool, expert_leaves
from lorage_jax.hf.load import load_model, load_tokenizer
from lorage_jax.methods.method import Conditioning, Method, Placement, beside, register
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout, ShardingRules, make_mesh, replicated, tree_shardings
from lorage_jax.train.generator import RESUMABLE
from lorage_jax.train.loop import Job, check_divides, check_run_folder, run
from lorage_jax.train.optimizer import learning_rate, make_optimizer
from lorage_jax.train.state import TrainState, moment_shardings
from lorage_jax.train.step import (
    QUERY_ARRAYS,
    QUERY_PLACES,
    count_targets,
    device_batch,
    micro_sharding,
    query_nll,
)

FORMAT = "lorage-lora/1"
ARRAYS = (*QUERY_ARRAYS, *QUERY_PLACES)  # of a batch
TENSORS = "lora.safetensors"
FIELDS = {"rank": int, "alpha": int | float, "edge": str}


@register
@dataclass(frozen=True, eq=False)
class Lora(Method):
    """One LoRA for all tasks, merged; it ignores the prompt."""

    name: ClassVar[str] = "lora"
    what: ClassVar[str] = "one LoRA for all tasks, trained without prompts; the bare question"

    pool: Pool
    card: Card

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Lora:
        if source is None:
            raise ConfigError("lora needs the folder of a trained LoRA; give one.")
        return cls(*read_lora(source, edge))

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        return [Conditioning()] * len(prompts)

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(merge(edge, beside(self.pool, edge), self.card))


@dataclass(frozen=True)
class LoraResult:
    """`folder`: the LoRA's, for `load_lora`. `losses`: (step, loss) of this process's run."""

    folder: Path
    losses: list[tuple[int, float]]
    seconds: float
    first_step: int


def train_lora(
    config: ExperimentConfig, *, resume: bool = False, progress: bool = True
) -> LoraResult:
    """Trains the LoRA and writes it to `<out>/lora`; of the cloud only the tokenizer is read.

    Raises as `train.loop.train`. `out` must not be the folder of a generator's run.
    """
    if config.init:
        raise ConfigError("init names a generator, but a LoRA begins without; leave it out.")
    began, out = time.time(), Path(config.out)
    mesh, rules = make_mesh(config.mesh), ShardingRules()
    packed = config.data.packed_rows
    count = packed or config.data.rows // (config.optimizer.accumulate * config.data.prompt_chunks)
    check_divides(
        count,
        f"a micro-batch (or its prompt chunk) of {count} rows",
        mesh,
        "packed_rows"
        if packed
        else "prompts_per_batch x queries_per_prompt / (accumulate x prompt_chunks)",
    )
    check_run_folder(out, "lora", resume)
    edge = load_model(config.edge, config.dtype, mesh, rules)
    # Prompts are read and dropped: so the batches are those of a generator's run.
    batches = make_dataset(
        config.data, load_tokenizer(Path(config.cloud)), edge.tokenizer, config.seed
    )
    leaves = expert_leaves(edge.config, 1, config.generator.rank, "per_layer")
    optimizer = make_optimizer(config.optimizer, config.steps, leaves)
    lora, whole = tree_shardings(leaves, rules, mesh), replicated(mesh)
    moments = moment_shardings(leaves, lora, optimizer, mesh)
    shardings = TrainState(whole, lora, {}, moments, whole)
    step_fn = make_lora_step(config, edge.config, optimizer, shardings, edge.params, mesh, rules)
    rows = micro_sharding(rules, mesh)
    job = Job(
        config=config,
        resolved=to_dict(config)
        | {
            "method": "multitask_lora",  # no checkpoint of a generator
            "edge_weights": edge.fingerprint,
            "data_contents": data_fingerprint(config.data.sources),
        },
        resumable=RESUMABLE,
        state=_new_state(leaves, optimizer, config.seed, shardings),
        step=lambda state, batch: step_fn(state, edge.params, batch),
        batches=batches,
        describe=batches.describe,
        vocabularies={"query_tokens": ("edge", edge.config.vocab_size)},
        place=lambda batch: device_batch(batch, config.optimizer.accumulate, rows, ARRAYS),
    )
    state, losses, first = run(job, resume=resume, progress=progress)
    _save(out / "lora", state.trained, config, edge)
    return LoraResult(out / "lora", losses, time.time() - began, first)


def make_lora_step(
    config: ExperimentConfig,
    edge: ModelConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    frozen: dict[str, Any],
    mesh: Mesh,
    rules: ShardingRules,
) -> Callable[[TrainState, dict[str, Any], dict[str, Any]], tuple[TrainState, dict[str, Any]]]:
    """The compiled `step(state, frozen edge, batch) -> (state, metrics)`; `state` is donated.

    The batch is as `train.step.device_batch` places it: gradients of A micro-batches are summed.
    Metrics: loss (nats), grad_norm, learning_rate, target_tokens.
    """
    schedule = learning_rate(config.optimizer, config.steps)
    dropout, layout = config.generator.dropout, Layout(mesh, rules)
    decoder = Decoder(edge, remat=config.remat, dropout=dropout, layout=layout)
    prompts = config.data.prompts_per_batch // config.optimizer.accumulate

    def loss_fn(lora, frozen, micro, targets, key):
        # One expert, open in every layer of every row.
        gates = jnp.ones((prompts, edge.layers, 1), jnp.float32)
        pool = _pool(lora, config.generator.scale)
        nll = query_nll(decoder, frozen, pool, gates, micro, key)
        return nll / targets  # over all micro-batches: their sum is the mean over the batch

    def step(state, frozen, batch):
        targets = count_targets(batch)
        step_key = jax.random.fold_in(state.key, state.step)

        def micro_step(total, inputs):
            micro, index = inputs
            key = jax.random.fold_in(step_key, index)
            found = jax.value_and_grad(loss_fn)(state.trained, frozen, micro, targets, key)
            return jax.tree.map(jnp.add, total, found), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trained))
        count = jnp.arange(config.optimizer.accumulate)
        (loss, grads), _ = jax.lax.scan(micro_step, zeros, (batch, count))
        updates, moments = optimizer.update(grads, state.optimizer, state.trained)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
            "target_tokens": targets,
        }
        trained = optax.apply_updates(state.trained, updates)
        return TrainState(state.step + 1, trained, {}, moments, state.key), metrics

    return jax.jit(
        step,
        in_shardings=(
            shardings,
            jax.tree.map(lambda x: x.sharding, frozen),
            micro_sharding(rules, mesh),
        ),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def load_lora(folder: str | Path, edge: Model) -> Model:
    """The edge with the LoRA merged. WeightsError for another edge, or a damaged folder."""
    pool, card = read_lora(folder, edge)
    return merge(edge, pool, card)


def read_lora(folder: str | Path, edge: Model) -> tuple[Pool, Card]:
    """The LoRA as a pool of one expert, and the card that opens it in every layer, unmerged."""
    folder = Path(folder)
    values = _values(folder)
    if values["edge"] != edge.fingerprint:
        raise WeightsError(
            f"{folder} was trained for the edge model {values['edge'][:19]}..., not for "
            f"{edge.fingerprint[:19]}... ({edge.source}). Load the edge it was trained on."
        )
    leaves = expert_leaves(edge.config, 1, values["rank"], "per_layer")
    shapes = {name: leaf.shape for name, leaf in flatten(leaves).items()}
    arrays = read_tensors(folder / TENSORS, shapes)
    experts = {
        projection: {part: jnp.asarray(arrays[f"{projection}.{part}"]) for part in ("a", "b")}
        for projection in PROJECTIONS
    }
    identity = fingerprint_arrays(arrays)
    gates = np.ones((edge.config.layers, 1), np.float32)
    card = Card(gates, identity, edge.fingerprint, {"what": "multitask LoRA"})
    return _pool(experts, values["alpha"] / values["rank"], identity), card


def _pool(lora: dict[str, Any], scale: float, identity: str = "") -> Pool:
    return Pool(lora, "factors", scale, "per_layer", identity)


def _save(folder: Path, lora: dict[str, Any], config: ExperimentConfig, edge: Model) -> None:
    with new_folder(folder, overwrite=True) as temporary:
        save(temporary / TENSORS, {k: np.asarray(v) for k, v in flatten(lora).items()}, {})
        values = {
            "format": FORMAT,
            "rank": config.generator.rank,
            "alpha": config.generator.alpha,
            "edge": edge.fingerprint,
            "about": {"steps": config.steps, "seed": config.seed, "dtype": config.dtype},
        }
        write_manifest(temporary, values)


def _values(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{folder} holds no LoRA ({error}); expected a folder that `train_lora` wrote."
        ) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise WeightsError(f"{folder} is not a multitask LoRA ({FORMAT}); it says {found!r}.")
    for name, kind in FIELDS.items():
        if not isinstance(values.get(name), kind):
            raise WeightsError(f"{path} is damaged: {name} is {values.get(name)!r}.")
    return values


def _new_state(
    leaves: Any, optimizer: optax.GradientTransformation, seed: int, shardings: TrainState
) -> TrainState:
    def build(key: Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        lora = initialise(leaves, init_key)
        return TrainState(jnp.zeros((), jnp.int32), lora, {}, optimizer.init(lora), run_key)

    return jax.jit(build, out_shardings=shardings)(jax.random.PRNGKey(seed))
