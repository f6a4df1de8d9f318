"""How much arithmetic a training step needs, and how much a device could do in its time.

Model FLOPs (2 a multiply-accumulate) of the matrix products at the padded shapes; what remat
computes twice does not count. A frozen matrix costs two passes, forward and the gradient of its
input; a trained one, and attention, whose two sides are both activations, three.
"""

from __future__ import annotations

import math
from typing import Any

import jax

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
    for prompts in batch["prompt_tokens"]:
        rows, length = prompts.shape
        length += edge.layers  # the meta tokens
        macs += rows * length * cloud.layers * (_token_macs(cloud, length) + 3 * adapter)
    return 2 * macs


def edge_flops(config: GeneratorConfig, edge: ModelConfig, batch: dict[str, Any]) -> int:
    """Of the queries, the pool's LoRAs and the head included."""
    macs = 0
    lora = 3 * config.rank * (edge.width + edge.ffn_width)  # gate, up and down
    for queries in batch["query_tokens"]:
        rows, length = queries.shape
        length -= 1  # the last token is only a target
        # `factors` sum the experts once a row, `products` apply every expert to every token.
        if config.combine == "factors":
            loras = rows * (config.experts + length)
        else:
            loras = rows * config.experts * length
        macs += rows * length * edge.layers * _token_macs(edge, length)
        macs += rows * length * 2 * edge.vocab_size * edge.width  # the head
        macs += 3 * edge.layers * loras * lora
    return 2 * macs


def _token_macs(model: ModelConfig, length: int) -> int:
    """Of one token in one layer, forward and backward; attention over all pairs."""
    leaves = model_leaves(model)["layers"]
    matrices = sum(math.prod(leaves[name].shape[1:]) for name in MATRICES)
    return 2 * matrices + 3 * 2 * model.heads * model.head_dim * length
