"""Granite 3: llama with factors on embeddings, attention scores, residuals and logits."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, Get, activation, register
from lorage_jax.models.presets import plain_decoder

_EXPERTS = "a mixture of experts; it would need a router over several FFNs in every layer"


def _read(get: Get) -> dict[str, Any]:
    return {
        "embedding_multiplier": get("embedding_multiplier"),
        "query_scale": get("attention_multiplier"),
        "residual_multiplier": get("residual_multiplier"),
        "logits_divisor": get("logits_scaling"),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": activation(config),
        "attention_bias": config.out_bias,
        "mlp_bias": config.ffn_bias,
        "embedding_multiplier": config.embedding_multiplier,
        "attention_multiplier": config.query_scale,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": config.logits_divisor,
    }


register(
    Family(
        "granite",
        "GraniteForCausalLM",
        read=_read,
        reads=frozenset(
            {
                "embedding_multiplier",
                "attention_multiplier",
                "residual_multiplier",
                "logits_scaling",
            }
        ),
        write=_write,
        near={
            "granitemoe": f"Granite MoE is {_EXPERTS}",
            "granitemoeshared": f"Granite MoE is {_EXPERTS}",
            "granitemoehybrid": "Granite 4 mixes Mamba layers with attention, and may have "
            "experts; it would need state-space layers",
        },
        shapes={
            "granite-3-2b": plain_decoder(
                "granite",
                vocab_size=49_152,
                width=2048,
                layers=40,
                heads=32,
                kv_heads=8,
                ffn_width=8192,
                max_positions=131_072,
                rope_theta=5_000_000.0,
                tied_head=True,
                query_scale=0.015625,
                embedding_multiplier=12.0,
                residual_multiplier=0.22,
                logits_divisor=8.0,
                bos_id=0,
                eos_ids=(0,),
                pad_id=0,
            )
        },
        known={"granite-3.1-2b-base": "granite-3-2b"},
    )
)
