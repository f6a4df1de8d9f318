"""One optimizer step: cloud pass over P prompts, edge pass over B = P x Q rows, one update.

Micro-batches are an axis in front of every batch array, [A, P/A, ...]: gradients are summed over
it inside the same compiled step. BatchNorm and the balance loss see one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.generator.generator import prompt_gates
from lorage_jax.generator.losses import cross_entropy, expert_usage, squared_cv
from lorage_jax.generator.pool import make_pool
from lorage_jax.models.decoder import Decoder
from lorage_jax.sharding import ShardingRules, replicated
from lorage_jax.train.optimizer import learning_rate
from lorage_jax.train.state import TrainState

ARRAYS = ("prompt_tokens", "prompt_mask", "query_tokens", "query_mask", "loss_mask")


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
    grad_norm, learning_rate, usage [L, E], target_tokens.
    """
    schedule = learning_rate(config.optimizer, config.steps)

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
        )
        queries = micro["query_tokens"].shape[0] // gates.shape[0]
        decoder = Decoder(edge, remat=config.remat, dropout=config.generator.dropout)
        logits = decoder.apply(
            {"params": frozen["edge"]},
            micro["query_tokens"][:, :-1],
            micro["query_mask"][:, :-1],
            gates=jnp.repeat(gates, queries, axis=0),
            pool=make_pool(trained["pool"], config.generator),
            rngs={"dropout": dropout_key},
        )
        nll, _ = cross_entropy(logits, micro["query_tokens"][:, 1:], micro["loss_mask"][:, 1:])
        cv = squared_cv(gates) / config.optimizer.accumulate
        loss = nll / targets  # over all micro-batches: their sum is the mean over the batch
        metrics = {
            "loss": loss,
            "cv": cv,
            "usage": expert_usage(gates) / config.optimizer.accumulate,
        }
        return loss + config.generator.cv_weight * cv, (statistics, metrics)

    def train_step(state, frozen, batch):
        targets = jnp.maximum(jnp.sum(batch["loss_mask"][..., 1:]), 1).astype(jnp.float32)
        step_key = jax.random.fold_in(state.key, state.step)

        def micro_step(carry, inputs):
            statistics, total = carry
            micro, index = inputs
            key = jax.random.fold_in(step_key, index)
            grad = jax.grad(loss_fn, has_aux=True)
            grads, (statistics, metrics) = grad(
                state.trained, statistics, frozen, micro, targets, key
            )
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


def micro_sharding(rules: ShardingRules, mesh: Mesh) -> NamedSharding:
    """Micro-batches whole, their rows over the data axes."""
    return NamedSharding(mesh, PartitionSpec(None, rules.batch))


def device_batch(batch: dict[str, Any], accumulate: int, sharding: NamedSharding) -> dict[str, Any]:
    """A pipeline batch as [A, rows/A, length] arrays on the devices.

    Micro-batch a takes the a-th part of every chunk of prompts, and the rows that belong to them.
    """
    chunks = len(batch["prompt_tokens"])

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(accumulate, -1, x.shape[-1])

    def split_rows(x: np.ndarray) -> np.ndarray:
        parts = x.reshape(chunks, accumulate, -1, x.shape[-1])
        return split(np.ascontiguousarray(parts.swapaxes(0, 1)))

    placed = {
        name: jax.tree.map(split, batch[name])
        if name.startswith("prompt")
        else split_rows(batch[name])
        for name in ARRAYS
    }
    return jax.device_put(placed, sharding)
