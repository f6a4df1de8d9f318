"""The arithmetic of a training step, and the peak rate of the devices, for the MFU.

It counts model FLOPs (2 per multiply-accumulate) of the matrix products at the padded shapes, but
not what remat computes again. A frozen matrix costs two passes, forward and the gradient of its
input; a trained one, and attention, whose two sides are both activations, three. Prompts cost one
where the cloud has no adapters, and so does a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lorage_jax.chips import PEAK_FLOPS
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.models.leaves import model_leaves


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together; None if their kind is not in the table."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def step_flops(config: GeneratorConfig, cloud: ModelConfig, edge: ModelConfig, batch: Batch) -> int:
    """FLOPs of one step on a batch of the host."""
    own = cloud_flops(config, cloud, edge, batch) + edge_flops(config, edge, batch)
    return own + teacher_flops(edge, batch)


def cloud_flops(
    config: GeneratorConfig, cloud: ModelConfig, edge: ModelConfig, batch: Batch
) -> int:
    """FLOPs of the prompts, each followed by a meta token per layer of the edge."""
    macs = 0
    adapter = config.cloud_rank * (
        2 * cloud.width + (cloud.heads + cloud.kv_heads) * cloud.head_dim
    )
    for chunk, lengths in _lengths(batch.prompts):
        count = chunk.tokens.size
        meta, whole = edge.layers * len(lengths), lengths + edge.layers
        if config.cloud_rank == 0:  # only the meta tokens have a backward pass
            layer = _layer_macs(cloud, count, _pairs(lengths), backward=False)
            layer += _layer_macs(cloud, meta, edge.layers * int(whole.sum()))
        else:
            layer = _layer_macs(cloud, count + meta, _pairs(whole)) + 3 * (count + meta) * adapter
        macs += cloud.layers * layer
    return 2 * macs


def edge_flops(config: GeneratorConfig, edge: ModelConfig, batch: Batch) -> int:
    """FLOPs of the queries, the pool's LoRAs and the head included."""
    macs = 0
    lora = len(edge.projections) * config.rank * (edge.width + edge.ffn_width)
    for chunk, lengths in _lengths(batch.queries):
        rows, length = chunk.tokens.shape
        tokens = rows * (length - 1)  # the last one is only a target
        # `factors` sum the experts once per row; else every expert is applied to every token.
        if config.combine == "factors" and chunk.text is None:
            loras = rows * config.experts + tokens
        else:
            loras = config.experts * tokens
        macs += edge.layers * _layer_macs(edge, tokens, _pairs(lengths - 1))
        macs += tokens * 2 * edge.vocab_size * edge.width  # the head
        macs += 3 * edge.layers * loras * lora
    return 2 * macs


def teacher_flops(edge: ModelConfig, batch: Batch) -> int:
    """FLOPs of a teacher's forward pass; its head is applied to the slots of the queries."""
    macs = 0
    for chunk, lengths in _lengths(batch.shown):
        each = _layer_macs(edge, chunk.tokens.size, _pairs(lengths), backward=False)
        macs += edge.layers * each
    slots = sum(partners.size for partners in batch.partners)
    return 2 * (macs + slots * edge.vocab_size * edge.width)


def _lengths(chunks: Sequence[Rows]) -> Iterator[tuple[Rows, np.ndarray]]:
    """Every chunk with the number of slots of each of its texts; packed rows hold several."""
    for rows in chunks:
        if rows.text is None:
            yield rows, np.full(rows.tokens.shape[0], rows.tokens.shape[1])
            continue
        text, mask = np.asarray(rows.text), np.asarray(rows.mask)
        each = [np.bincount(row[real]) for row, real in zip(text, mask, strict=True)]
        yield rows, np.concatenate(each)


def _pairs(lengths: np.ndarray) -> int:
    """Pairs of slots of texts in which every slot meets every slot."""
    return int(np.sum(np.square(lengths, dtype=np.int64)))


def _layer_macs(model: ModelConfig, tokens: int, pairs: int, backward: bool = True) -> int:
    """MACs of a layer with frozen weights; attention over `pairs` of slots."""
    leaves = model_leaves(model)["layers"]
    matrices = sum(math.prod(leaf.shape[1:]) for leaf in leaves.values() if leaf.matrix)
    attention = 2 * model.heads * model.head_dim
    times = (2, 3) if backward else (1, 1)
    return times[0] * matrices * tokens + times[1] * attention * pairs
