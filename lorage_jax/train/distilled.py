"""Distilling the context: the edge under its gates learns from an edge that reads the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.data.batches import Batch, Rows
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.train.edge_loss import chunk_answers, gated_chunks, gathered_head
from lorage_jax.train.losses import HeadLoss, frozen_head_kl


def distilled_loss(
    decoder: Decoder,
    frozen: Mapping[str, Any],
    pool: Pool,
    gates: Float[Array, "P L E"],
    micro: Batch,
    key: jax.Array | None,
    share: float,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of a micro-batch with a teacher, summed over the targets in nats.

    Each target that the teacher, too, predicts counts (1 - share) * cross entropy + share *
    KL(teacher || student), any other its cross entropy alone.

    Args:
        decoder: the edge's decoder, with a layout.
        frozen: parameters of the `edge` and, if they are others, of the `teacher`.
        pool: the experts that the gates combine.
        gates: gates of all prompts, as in `train.edge_loss.query_nll`.
        micro: the micro-batch, with `shown` and `partners`.
        key: random key for the student's dropout; None without dropout.
        share: the teacher's share of the loss.

    Returns the loss and metrics: `cross_entropy`, the mean over the targets; `kl`, the mean over
    those with a partner; `paired`, their share of all.
    """
    edge = frozen["edge"]
    teacher, head = frozen.get("teacher", edge), gathered_head(decoder, edge)
    sums, counts = HeadLoss(*[jnp.zeros((), jnp.float32)] * 3), jnp.zeros(2, jnp.float32)
    chunks = zip(gated_chunks(gates, micro.queries, key), micro.shown, micro.partners, strict=True)
    for (chunk, rows, own), shown, partners in chunks:
        found = chunk_answers(decoder, edge, chunk, own, gates=rows, pool=pool)
        states = teacher_states(decoder, teacher, shown)
        partners = jnp.take_along_axis(partners[:, :-1], found.front, axis=1)
        taught, paired = picked(states, partners)
        hidden = found.output.hidden
        rest = found.targets, paired, found.wanted
        one: HeadLoss = frozen_head_kl(decoder.config, share, head, hidden, taught, *rest)
        sums = HeadLoss(*map(jnp.add, sums, one))
        counts += jnp.stack([jnp.sum(found.wanted), jnp.sum(paired & found.wanted)])
    targets, pairs = jnp.maximum(counts, 1)
    metrics = {"cross_entropy": sums.nll / targets, "kl": sums.kl / pairs, "paired": counts[1]}
    metrics["paired"] /= targets
    return sums.loss, jax.lax.stop_gradient(metrics)


def teacher_states(decoder: Decoder, params: dict[str, Any], shown: Rows) -> Float[Array, "R S D"]:
    """The states of a frozen edge after its final norm, at all slots of `shown`, no gradient."""
    branches = None
    if shown.text is not None and shown.positions is not None:
        branches = Branches(None, shown.positions, shown.text)
    reader = Decoder(decoder.config, layout=decoder.layout)
    output = reader.apply(
        {"params": params}, shown.tokens, shown.mask, branches=branches, head=False
    )
    return jax.lax.stop_gradient(output.hidden)


def picked(
    states: Float[Array, "R S D"], partners: Int[Array, "B N"]
) -> tuple[Float[Array, "B N D"], Bool[Array, "B N"]]:
    """The teacher's state for each slot of the student, and True where there is one.

    `partners` indexes the slots of the whole batch. Micro-batches split the rows of student and
    teacher alike, so the index modulo a micro-batch's slots is the index within it.
    """
    flat = states.reshape(-1, states.shape[-1])
    return flat[jnp.maximum(partners, 0) % flat.shape[0]], partners >= 0
