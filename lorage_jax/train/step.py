"""The optimizer step of every training: gradients of a summed loss, one update, one program.

A batch is cut into A micro-batches, an axis in front of every array, [A, rows / A, ...]: gradients
are summed over it inside the same compiled step. A loss sees one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from lorage_jax.config import DataConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.distributed import spread
from lorage_jax.sharding import Layout, replicated
from lorage_jax.train.state import TrainState


class Loss(flax.struct.PyTreeNode):
    """The loss of one micro-batch.

    Attributes:
        nll: negative log-likelihood in nats, summed over the targets.
        statistics: running statistics after this micro-batch; no gradient flows to them.
        penalty: added to the mean of `nll` over the targets.
        metrics: numbers to record; the step records their means over the micro-batches.
    """

    nll: Float[Array, ""]
    statistics: Any = flax.struct.field(default_factory=dict)
    penalty: Float[Array, ""] | float = 0.0
    metrics: dict[str, Array] = flax.struct.field(default_factory=dict)


# (trained, statistics, frozen, micro-batch, key) -> loss; the key is None if nothing is random.
LossFn: TypeAlias = Callable[[Any, Any, Any, Batch, jax.Array | None], Loss]
# (state, frozen, batch) -> (state, metrics)
Step: TypeAlias = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


def count_targets(batch: Batch) -> Float[Array, ""]:
    """Target tokens of all micro-batches and chunks, at least 1."""
    masks = [rows.loss_mask for rows in batch.queries if rows.loss_mask is not None]
    return jnp.maximum(sum(jnp.sum(x[..., 1:]) for x in masks), 1).astype(jnp.float32)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    accumulate: int,
    shardings: TrainState,
    frozen: Any,
    layout: Layout,
    count: Callable[[Batch], Float[Array, ""]] = count_targets,
) -> Any:
    """The jitted `step(state, frozen, batch) -> (state, metrics)` (a `Step`); `state` is donated.

    Args:
        loss_fn: the loss of a micro-batch; differentiated by its first argument.
        optimizer: whose state is `TrainState.optimizer`.
        schedule: step to learning rate, for the metrics.
        accumulate: A, micro-batches per step.
        shardings: of the state.
        frozen: shardings of the frozen weights.
        layout: mesh and rules of the program.
        count: the number that the summed loss of the whole batch is divided by.

    Metrics: loss (nats per target), grad_norm, learning_rate, target_tokens, and those of the loss.
    """

    gradients = _gradients(loss_fn, accumulate, shardings.trained)

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        targets = count(batch)
        grads, (statistics, metrics) = gradients(state, frozen, batch, targets)
        updates, moments = optimizer.update(grads, state.optimizer, state.trained)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
            "target_tokens": targets,
        }
        new = state.replace(
            step=state.step + 1,
            trained=optax.apply_updates(state.trained, updates),
            statistics=statistics,
            optimizer=moments,
        )
        return new, metrics

    return jax.jit(
        step,
        in_shardings=(shardings, frozen, micro_sharding(layout)),
        out_shardings=(shardings, replicated(layout.mesh)),
        donate_argnums=0,
    )


def _gradients(loss_fn: LossFn, accumulate: int, places: Any) -> Callable[..., Any]:
    """(state, frozen, batch, targets) -> (gradients, (statistics, metrics)) over A micro-batches.

    `places`: shardings of the gradients.
    """

    def objective(trained, statistics, frozen, micro, targets, key):
        loss = loss_fn(trained, statistics, frozen, micro, key)
        mean = loss.nll / targets  # of all micro-batches: their sum is the mean over the batch
        metrics = {"loss": mean} | {name: x / accumulate for name, x in loss.metrics.items()}
        return mean + loss.penalty / accumulate, (loss.statistics, metrics)

    def of_micro(state, statistics, frozen, micro, targets, number):
        key = None
        if state.key is not None:
            key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), number)
        found = jax.grad(objective, has_aux=True)
        grads, aux = found(state.trained, statistics, frozen, micro, targets, key)
        return jax.lax.with_sharding_constraint(grads, places), aux

    def of_batch(state, frozen, batch, targets):
        first = jax.tree.map(lambda x: x[0], batch)
        if accumulate == 1:
            return of_micro(state, state.statistics, frozen, first, targets, 0)

        def one(carry, inputs):
            statistics, total = carry
            micro, number = inputs
            found = of_micro(state, statistics, frozen, micro, targets, number)
            grads, (statistics, metrics) = found
            return (statistics, jax.tree.map(jnp.add, total, (grads, metrics))), None

        shapes = jax.eval_shape(of_micro, state, state.statistics, frozen, first, targets, 0)
        grads, (_, metrics) = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        carry = (state.statistics, (grads, metrics))
        numbered = (batch, jnp.arange(accumulate))
        (statistics, (grads, metrics)), _ = jax.lax.scan(one, carry, numbered)
        return grads, (statistics, metrics)

    return of_batch


def micro_sharding(layout: Layout) -> NamedSharding:
    """Micro-batches whole, their rows over the data axes."""
    return NamedSharding(layout.mesh, PartitionSpec(None, layout.rules.batch))


def device_batch(batch: Batch, accumulate: int, sharding: NamedSharding) -> Batch:
    """A batch of the host, chunks of [rows, length], as [A, rows / A, length] on the devices.

    Micro-batch a takes the a-th part of every chunk: prompts, and the queries that belong to them.
    Every process has the whole batch and feeds the rows of its own devices.
    """

    def split(x: np.ndarray) -> Array:
        return spread(x.reshape(accumulate, -1, x.shape[-1]), sharding)

    # Absent parts have no arrays; what only the host knows stays there.
    parts = batch.replace(group_ids=None, truncated=None, texts=())
    return jax.tree.map(split, parts)


def per_prompt(prompts: Sequence[Rows], width: int, dtype: Any) -> tuple[Any, ...]:
    """Shapes [A, p, width], one per chunk of abstract unpacked prompts, sharded like these."""
    return tuple(
        jax.ShapeDtypeStruct(
            (*chunk.tokens.shape[:-1], width), dtype, sharding=chunk.tokens.sharding
        )
        for chunk in prompts
    )


def longest_batch(
    data: DataConfig, accumulate: int, sharding: NamedSharding, row_tokens: int | None = None
) -> Batch:
    """The shapes of `device_batch` at the maximum lengths: the batch that must fit.

    `row_tokens` limits the slots per row.
    """
    packed = data.packed_rows is not None
    prompts = data.prompts_per_batch // (data.prompts_per_row * accumulate * data.prompt_chunks)
    # One row per query, or if packed, as many rows as for the prompts.
    queries = prompts if packed else prompts * data.queries_per_prompt
    texts = data.prompts_per_row * data.queries_per_prompt if packed else 1

    def array(rows: int, length: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((accumulate, rows, length), dtype, sharding=sharding)

    def chunk(rows: int, length: int, **more: Any) -> Rows:
        shape = (rows, min(length, row_tokens or length))
        if packed:
            more |= {"text": array(*shape), "positions": array(*shape)}
        return Rows(array(*shape), array(*shape, jnp.bool_), **more)

    length = texts * data.max_query_tokens
    wanted = array(queries, min(length, row_tokens or length), jnp.bool_)
    owner = array(queries, texts) if packed else None
    return Batch(
        (chunk(prompts, data.prompts_per_row * data.max_prompt_tokens),) * data.prompt_chunks,
        (chunk(queries, length, loss_mask=wanted, owner=owner),) * data.prompt_chunks,
    )
