"""The edge's loss on its answers, with gates per row or other inputs of its decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.data.batches import Rows
from lorage_jax.models.cache import Past
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder, Output
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import model_leaves
from lorage_jax.train.losses import frozen_head_nll


def query_nll(
    decoder: Decoder,
    edge: dict[str, Any],
    pool: Pool,
    gates: Float[Array, "P L E"],
    queries: Sequence[Rows],
    key: jax.Array | None,
) -> Float[Array, ""]:
    """Summed negative log-likelihood, in nats, of the targets of a micro-batch.

    The edge runs once per chunk of queries, on rows of that chunk's length. Each row has the gates
    of its prompt; in packed rows, each token has those of its own prompt.

    Args:
        decoder: the edge's decoder, with a layout.
        edge: the edge's frozen parameters.
        pool: the experts that the gates combine.
        gates: gates of all prompts, in the order that the queries' `owner` refers to.
        queries: the chunks of queries.
        key: random key for dropout; None without dropout.
    """
    total = jnp.zeros((), jnp.float32)
    head = gathered_head(decoder, edge)
    for chunk, rows, own in gated_chunks(gates, queries, key):
        total += chunk_nll(decoder, edge, head, chunk, own, gates=rows, pool=pool)[0]
    return total


def gated_chunks(
    gates: Float[Array, "P L E"], queries: Sequence[Rows], key: jax.Array | None
) -> Iterator[tuple[Rows, Array, jax.Array | None]]:
    """Each chunk of queries with its gates, per row or (packed) per slot, and its own key."""
    prompts = gates.shape[0] // len(queries)
    for number, chunk in enumerate(queries):
        done = number * prompts
        rows = _row_gates(gates[done : done + prompts], gates, chunk)
        yield chunk, rows, None if key is None else jax.random.fold_in(key, number)


def queries_nll(
    decoder: Decoder,
    edge: dict[str, Any],
    queries: Sequence[Rows],
    key: jax.Array | None,
    **inputs: Any,
) -> tuple[Float[Array, ""], list[Output]]:
    """The loss of all chunks as `chunk_nll` gives it, with the same `inputs` for all rows."""
    head, losses, outputs = gathered_head(decoder, edge), [], []
    for number, chunk in enumerate(queries):
        own = None if key is None else jax.random.fold_in(key, number)
        nll, output = chunk_nll(decoder, edge, head, chunk, own, **inputs)
        losses.append(nll)
        outputs.append(output)
    return sum(losses, jnp.zeros((), jnp.float32)), outputs


def chunk_nll(
    decoder: Decoder,
    edge: dict[str, Any],
    head: dict[str, Array],
    chunk: Rows,
    key: jax.Array | None,
    *,
    prefix: Float[Array, "*R M D"] | None = None,
    past: Past | None = None,
    **inputs: Any,
) -> tuple[Float[Array, ""], Output]:
    """Summed negative log-likelihood, in nats, of the targets of one chunk of queries.

    Args:
        decoder: the edge's decoder, with a layout.
        edge: the edge's frozen parameters.
        head: `gathered_head`.
        chunk: the queries.
        key: random key for dropout; None without dropout.
        prefix: the soft prompt of each row, or one for all; packed rows need one for all.
        past: the same as keys and values.
        inputs: further arguments of the decoder, such as `adapters` or a `pool`.

    Returns:
        The loss, and the decoder's output at the slots before the targets.
    """
    found = chunk_answers(decoder, edge, chunk, key, prefix=prefix, past=past, **inputs)
    nll: Array = frozen_head_nll(
        decoder.config, head, found.output.hidden, found.targets, found.wanted
    )
    return nll, found.output


class Answers(NamedTuple):
    """A decoder's output on a chunk of queries, at N = T - 1 slots, those with a target in front.

    Attributes:
        output: the decoder's, without logits.
        targets: the token that each slot predicts.
        wanted: True where that token has a loss.
        front: the slots in this order.
    """

    output: Output
    targets: Int[Array, "R N"]
    wanted: Bool[Array, "R N"]
    front: Int[Array, "R N"]


def chunk_answers(
    decoder: Decoder,
    edge: dict[str, Any],
    chunk: Rows,
    key: jax.Array | None,
    *,
    prefix: Float[Array, "*R M D"] | None = None,
    past: Past | None = None,
    **inputs: Any,
) -> Answers:
    """Runs the decoder on one chunk of queries; arguments as in `chunk_nll`."""
    assert chunk.loss_mask is not None
    targets, wanted = chunk.tokens[:, 1:], chunk.loss_mask[:, 1:]
    front = jnp.argsort(~wanted, axis=1, stable=True)  # targets first, see `frozen_head_nll`
    branches = None
    if chunk.text is not None and chunk.positions is not None:
        branches = Branches(None, chunk.positions[:, :-1], chunk.text[:, :-1])
    rows = targets.shape[0]
    if prefix is not None:
        inputs["prefix"] = _of_rows(prefix, rows, 0)
    if past is not None:
        k, v = (_of_rows(x, rows, 1) for x in (past.k, past.v))
        valid, positions = (_of_rows(x, rows, 0) for x in (past.valid, past.positions))
        inputs["past"] = Past(k, v, valid, positions)
    if branches is not None and branches.text is not None and (prefix is not None or past):
        # The texts of a row are continuations of what stands in front of it.
        branches = Branches(branches.text + 1, branches.positions)
    output: Output = decoder.apply(
        {"params": edge},
        chunk.tokens[:, :-1],
        chunk.mask[:, :-1],
        branches=branches,
        at=front,
        head=False,
        rngs={} if key is None else {"dropout": key},
        **inputs,
    )
    targets, wanted = (jnp.take_along_axis(x, front, axis=1) for x in (targets, wanted))
    return Answers(output, targets, wanted, front)


def _of_rows(x: Array, rows: int, axis: int) -> Array:
    """One for every row, where there is one for all."""
    return jnp.repeat(x, rows, axis=axis) if x.shape[axis] == 1 else x


def gathered_head(decoder: Decoder, edge: dict[str, Any]) -> dict[str, Array]:
    """The head's parameter by name, gathered once for all chunks."""
    assert decoder.layout is not None
    name = "embed" if decoder.config.tied_head else "head"
    return {name: decoder.layout.gathered(model_leaves(decoder.config)[name], edge[name])}


def _row_gates(own: Float[Array, "p L E"], gates: Float[Array, "P L E"], chunk: Rows) -> Array:
    """Gates per row; for packed rows, per slot, without the last slot.

    `own` are the gates of this chunk's prompts, `gates` those of all prompts.
    """
    if chunk.text is None or chunk.positions is None or chunk.owner is None:
        return jnp.repeat(own, chunk.tokens.shape[0] // own.shape[0], axis=0)
    rows = jnp.take_along_axis(gates[chunk.owner], chunk.text[..., None, None], axis=1)
    return rows[:, :-1]
