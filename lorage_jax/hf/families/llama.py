"""Llama 2 and 3, TinyLlama, SmolLM and all other models with `model_type` llama."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, activation, register
from lorage_jax.models.presets import plain_decoder


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": activation(config),
        "attention_bias": config.out_bias,
        "mlp_bias": config.ffn_bias,
    }


register(
    Family(
        "llama",
        "LlamaForCausalLM",
        write=_write,
        shapes={
            "tinyllama": plain_decoder(
                "llama",
                vocab_size=32_000,
                width=2048,
                layers=22,
                heads=32,
                kv_heads=4,
                ffn_width=5632,
                bos_id=1,
                eos_ids=(2,),
            ),
            "smollm2-135m": plain_decoder(
                "llama",
                vocab_size=49_152,
                width=576,
                layers=30,
                heads=9,
                kv_heads=3,
                ffn_width=1536,
                max_positions=8192,
                rope_theta=100_000.0,
                tied_head=True,
                bos_id=0,
                eos_ids=(0,),
            ),
            "llama3-8b": plain_decoder(
                "llama",
                vocab_size=128_256,
                width=4096,
                layers=32,
                heads=32,
                kv_heads=8,
                ffn_width=14_336,
                max_positions=8192,
                rope_theta=500_000.0,
                bos_id=128_000,
                eos_ids=(128_001,),
            ),
        },
        known={
            "SmolLM2-135M": "smollm2-135m",
            "SmolLM2-135M-Instruct": "smollm2-135m",
            "TinyLlama-1.1B-intermediate-step-1431k-3T": "tinyllama",
            "Meta-Llama-3-8B": "llama3-8b",
        },
    )
)
