"""The edge's loss on its answers, with gates per row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lorage_jax.data.batches import Rows
from lorage_jax.generator.losses import frozen_head_nll
from lorage_jax.models.decoder import Branches, Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import model_leaves


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
    assert decoder.layout is not None
    total, done = jnp.zeros((), jnp.float32), 0
    name = "embed" if decoder.config.tied_head else "head"
    head = decoder.layout.gathered(model_leaves(decoder.config)[name], edge[name])
    prompts = gates.shape[0] // len(queries)
    for number, chunk in enumerate(queries):
        rows, branches = _row_gates(gates[done : done + prompts], gates, chunk)
        assert chunk.loss_mask is not None
        targets, wanted = chunk.tokens[:, 1:], chunk.loss_mask[:, 1:]
        front = jnp.argsort(~wanted, axis=1, stable=True)  # targets first, see `frozen_head_nll`
        hidden = decoder.apply(
            {"params": edge},
            chunk.tokens[:, :-1],
            chunk.mask[:, :-1],
            gates=rows,
            pool=pool,
            branches=branches,
            at=front,
            head=False,
            rngs={} if key is None else {"dropout": jax.random.fold_in(key, number)},
        ).hidden
        targets, wanted = (jnp.take_along_axis(x, front, axis=1) for x in (targets, wanted))
        nll: Array = frozen_head_nll(decoder.config, {name: head}, hidden, targets, wanted)
        total += nll
        done += prompts
    return total


def _row_gates(
    own: Float[Array, "p L E"], gates: Float[Array, "P L E"], chunk: Rows
) -> tuple[Array, Branches | None]:
    """Gates per row; for packed rows, gates and branches per slot, without the last slot.

    `own` are the gates of this chunk's prompts, `gates` those of all prompts.
    """
    if chunk.text is None or chunk.positions is None or chunk.owner is None:
        return jnp.repeat(own, chunk.tokens.shape[0] // own.shape[0], axis=0), None
    rows = jnp.take_along_axis(gates[chunk.owner], chunk.text[..., None, None], axis=1)
    return jax.tree.map(lambda x: x[:, :-1], (rows, Branches(None, chunk.positions, chunk.text)))
