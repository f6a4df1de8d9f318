"""How much arithmetic a training step needs, and how much a device could do in its time.

Model FLOPs (2 a multiply-accumulate) of the matrix products at the padded shapes; what remat
computes twice does not count. A frozen matrix costs two passes, forward and the gradient of its
input; a trained one, and attention, whose two sides are both activations, three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lorage_jax.chips import PEAK_FLOPS
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.models.leaves import model_leaves

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def peak_flops() -> float | None:
    """Of all devices together; None when their kind is not in the table."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def step_flops(
    config: GeneratorConfig, cloud: ModelConfig, edge: ModelConfig, batch: dict[str, Any]
) -> int:
    """FLOPs of one step on a pipeline batch: chunks of prompts [p, S] and of queries [b, T]."""
    return cloud_flops(config, cloud, edge, batch) + edge_flops(config, edge, batch)


def cloud_flops(
    config: GeneratorConfig, cloud: ModelConfig, edge: ModelConfig, batch: dict[str, Any]
) -> int:
    """Of the prompts, each with a meta token for every layer of the edge behind it."""
    macs = 0
    adapter = config.cloud_rank * (
        2 * cloud.width + (cloud.heads + cloud.kv_heads) * cloud.head_dim
    )
    for prompts, lengths in _chunks(batch, "prompt"):
        texts = lengths + edge.layers  # the meta tokens
        tokens = prompts.size + edge.layers * len(lengths)
        macs += cloud.layers * (_model_macs(cloud, tokens, texts) + 3 * tokens * adapter)
    return 2 * macs


def edge_flops(config: GeneratorConfig, edge: ModelConfig, batch: dict[str, Any]) -> int:
    """Of the queries, the pool's LoRAs and the head included."""
    macs = 0
    lora = 3 * config.rank * (edge.width + edge.ffn_width)  # gate, up and down
    for queries, lengths in _chunks(batch, "query"):
        rows, length = queries.shape
        tokens = rows * (length - 1)  # the last one is only a target
        # `factors` sum the experts once a row, else every expert is applied to every token.
        if config.combine == "factors" and "query_text" not in batch:
            loras = rows * config.experts + tokens
        else:
            loras = config.experts * tokens
        macs += edge.layers * _model_macs(edge, tokens, lengths - 1)
        macs += tokens * 2 * edge.vocab_size * edge.width  # the head
        macs += 3 * edge.layers * loras * lora
    return 2 * macs


def _chunks(batch: dict[str, Any], whose: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(token ids [rows, length], slots of every text) of each chunk; packed rows hold several."""
    for number, tokens in enumerate(batch[f"{whose}_tokens"]):
        if f"{whose}_text" not in batch:
            yield tokens, np.full(tokens.shape[0], tokens.shape[1])
            continue
        text, mask = batch[f"{whose}_text"][number], batch[f"{whose}_mask"][number]
        each = [np.bincount(row[real]) for row, real in zip(text, mask, strict=True)]
        yield tokens, np.concatenate(each)


def _model_macs(model: ModelConfig, tokens: int, texts: np.ndarray) -> int:
    """Of a layer, forward and backward; attention over all pairs of slots of one text."""
    leaves = model_leaves(model)["layers"]
    matrices = sum(math.prod(leaves[name].shape[1:]) for name in MATRICES)
    pairs = int(np.sum(np.square(texts, dtype=np.int64)))
    return 2 * matrices * tokens + 3 * 2 * model.heads * model.head_dim * pairs
