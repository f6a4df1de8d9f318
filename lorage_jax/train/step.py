"""One optimizer step: cloud pass over P prompts, edge pass over B = P x Q rows, one update.

Prompts and their queries come in chunks, each padded to its own length. Micro-batches are an axis
in front of every chunk's arrays, [A, rows/A, ...]: gradients are summed over it inside the same
compiled step. BatchNorm and the balance loss see one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.distributed import spread
from lorage_jax.generator.generator import prompt_gates
from lorage_jax.generator.losses import expert_usage, frozen_head_nll, squared_cv
from lorage_jax.generator.pool import Pool, make_pool
from lorage_jax.models.decoder import Branches, Decoder
from lorage_jax.models.leaves import model_leaves
from lorage_jax.sharding import Layout, ShardingRules, replicated
from lorage_jax.train.optimizer import learning_rate
from lorage_jax.train.state import TrainState

QUERY_ARRAYS = ("query_tokens", "query_mask", "loss_mask")
# What a packed batch has besides.
QUERY_PLACES = ("query_text", "query_positions", "query_prompt")
PROMPT_PLACES = ("prompt_text", "prompt_positions")
PACKED_ARRAYS = (*PROMPT_PLACES, *QUERY_PLACES)
ARRAYS = ("prompt_tokens", "prompt_mask", *QUERY_ARRAYS, *PACKED_ARRAYS)


def make_train_step(
    config: ExperimentConfig,
    cloud: ModelConfig,
    edge: ModelConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    frozen_shardings: dict[str, Any],
    mesh: Mesh,
    rules: ShardingRules,
) -> Callable[[TrainState, dict[str, Any], dict[str, Any]], tuple[TrainState, dict[str, Any]]]:
    """The compiled `step(state, frozen, batch) -> (state, metrics)`; `state` is donated.

    `frozen`: {"cloud": params, "edge": params}. Metrics: loss and cv (nats, before weighting),
    grad_norm, learning_rate, usage and mean gates (gate_mass) [L, E], target_tokens.
    """
    schedule, layout = learning_rate(config.optimizer, config.steps), Layout(mesh, rules)
    dropout = config.generator.dropout
    decoder = Decoder(edge, remat=config.remat, dropout=dropout, layout=layout)

    def loss_fn(trained, statistics, frozen, micro, targets, key):
        gate_key, dropout_key = jax.random.split(key)
        gates, statistics = prompt_gates(
            config.generator,
            cloud,
            frozen["cloud"],
            trained,
            statistics,
            micro["prompt_tokens"],
            micro["prompt_mask"],
            remat=config.remat,
            key=gate_key,
            layout=layout,
            texts=_texts(micro, "prompt"),
            each=config.data.prompts_per_row,
        )
        nll = query_nll(
            decoder,
            frozen["edge"],
            make_pool(trained["pool"], config.generator),
            gates,
            micro,
            dropout_key,
        )
        cv = squared_cv(gates) / config.optimizer.accumulate
        loss = nll / targets  # over all micro-batches: their sum is the mean over the batch
        metrics = {
            "loss": loss,
            "cv": cv,
            "usage": expert_usage(gates) / config.optimizer.accumulate,
            "gate_mass": jnp.mean(gates, axis=0) / config.optimizer.accumulate,
        }
        return loss + config.generator.cv_weight * cv, (statistics, metrics)

    def train_step(state, frozen, batch):
        targets = count_targets(batch)
        step_key = jax.random.fold_in(state.key, state.step)

        def micro_step(carry, inputs):
            statistics, total = carry
            micro, index = inputs
            key = jax.random.fold_in(step_key, index)
            grad = jax.grad(loss_fn, has_aux=True)
            grads, (statistics, metrics) = grad(
                state.trained, statistics, frozen, micro, targets, key
            )
            grads = jax.lax.with_sharding_constraint(grads, shardings.trained)
            return (statistics, jax.tree.map(jnp.add, total, (grads, metrics))), None

        first = jax.tree.map(lambda x: x[0], batch)
        zeros = jax.eval_shape(
            lambda: jax.grad(loss_fn, has_aux=True)(
                state.trained, state.statistics, frozen, first, targets, step_key
            )
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (zeros[0], zeros[1][1]))
        if config.optimizer.accumulate == 1:
            (statistics, (grads, metrics)), _ = micro_step((state.statistics, zeros), (first, 0))
        else:
            count = jnp.arange(config.optimizer.accumulate)
            carry = (state.statistics, zeros)
            (statistics, (grads, metrics)), _ = jax.lax.scan(micro_step, carry, (batch, count))
        updates, moments = optimizer.update(grads, state.optimizer, state.trained)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
            "target_tokens": targets,
        }
        new = TrainState(
            step=state.step + 1,
            trained=optax.apply_updates(state.trained, updates),
            statistics=statistics,
            optimizer=moments,
            key=state.key,
        )
        return new, metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, frozen_shardings, micro_sharding(rules, mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def query_nll(
    decoder: Decoder,
    edge: dict[str, Any],
    pool: Pool,
    gates: Float[Array, "P L E"],
    micro: dict[str, Any],
    key: jax.Array,
) -> Float[Array, ""]:
    """Summed negative log-likelihood in nats of the targets of a micro-batch.

    The edge runs once a chunk of queries, on rows of that chunk's length; each row has the gates of
    its prompt; in packed rows, each token. `decoder` has a layout.
    """
    total, done = jnp.zeros((), jnp.float32), 0
    name = "embed" if decoder.config.tied_head else "head"
    head = decoder.layout.gathered(model_leaves(decoder.config)[name], edge[name])
    chunks = zip(*(micro[name] for name in QUERY_ARRAYS), strict=True)
    prompts = gates.shape[0] // len(micro["query_tokens"])
    texts = _texts(micro, "query")
    for number, (tokens, mask, loss_mask) in enumerate(chunks):
        if texts is None:
            rows = jnp.repeat(gates[done : done + prompts], tokens.shape[0] // prompts, axis=0)
            branches = None
        else:
            (owners,) = micro["query_prompt"]
            rows = jnp.take_along_axis(gates[owners], texts.text[..., None, None], axis=1)
            rows, branches = jax.tree.map(lambda x: x[:, :-1], (rows, texts))
        targets, wanted = tokens[:, 1:], loss_mask[:, 1:]
        front = jnp.argsort(~wanted, axis=1, stable=True)  # targets first, see `frozen_head_nll`
        hidden = decoder.apply(
            {"params": edge},
            tokens[:, :-1],
            mask[:, :-1],
            gates=rows,
            pool=pool,
            branches=branches,
            at=front,
            head=False,
            rngs={"dropout": jax.random.fold_in(key, number)},
        ).hidden
        targets, wanted = (jnp.take_along_axis(x, front, axis=1) for x in (targets, wanted))
        total += frozen_head_nll(decoder.config, {name: head}, hidden, targets, wanted)
        done += prompts
    return total


def _texts(micro: dict[str, Any], whose: str) -> Branches | None:
    """Which text every slot of packed prompts or queries belongs to, and where in it that is."""
    if f"{whose}_text" not in micro:
        return None
    (text,), (positions,) = micro[f"{whose}_text"], micro[f"{whose}_positions"]
    return Branches(None, positions, text)


def count_targets(batch: dict[str, Any]) -> Float[Array, ""]:
    """Target tokens of all micro-batches and chunks, at least 1."""
    return jnp.maximum(sum(jnp.sum(x[..., 1:]) for x in batch["loss_mask"]), 1).astype(jnp.float32)


def micro_sharding(rules: ShardingRules, mesh: Mesh) -> NamedSharding:
    """Micro-batches whole, their rows over the data axes."""
    return NamedSharding(mesh, PartitionSpec(None, rules.batch))


def device_batch(
    batch: dict[str, Any], accumulate: int, sharding: NamedSharding, names: Sequence[str] = ARRAYS
) -> dict[str, Any]:
    """Arrays of a pipeline batch, chunks of [rows, length], as [A, rows/A, length] on the devices.

    Micro-batch a takes the a-th part of every chunk: prompts, and the queries that belong to them.
    Every process has the whole batch and feeds its own devices' rows.
    """

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(accumulate, -1, x.shape[-1])

    return {
        name: jax.tree.map(lambda x: spread(split(x), sharding), batch[name])
        for name in names
        if name in batch
    }
