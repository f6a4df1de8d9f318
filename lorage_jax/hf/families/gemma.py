"""Gemma: norms multiply by 1 + scale, and embeddings are scaled by the square root of the width."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, activation, register


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": activation(config), "attention_bias": config.out_bias}


register(
    Family(
        "gemma",
        "GemmaForCausalLM",
        fields={"norm_offset": 1.0, "scaled_embedding": True},
        write=_write,
    )
)
