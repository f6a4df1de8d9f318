"""Qwen2 and Qwen2.5: biases on q, k and v, and optional sliding windows in the upper layers."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, activation, layer_types, register
from lorage_jax.models.presets import plain_decoder

FIELDS = {"qkv_bias": True, "out_bias": False}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": activation(config),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": layer_types(config),
    }


def tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer().backend_tokenizer


register(
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        fields=FIELDS,
        write=_write,
        shapes={
            "qwen2-1.5b": plain_decoder(
                "qwen2",
                vocab_size=151_936,
                width=1536,
                layers=28,
                heads=12,
                kv_heads=2,
                ffn_width=8960,
                max_positions=131_072,
                norm_eps=1e-6,
                rope_theta=1_000_000.0,
                tied_head=True,
                bos_id=151_643,
                eos_ids=(151_643,),
                **FIELDS,
            )
        },
        known={"Qwen2-1.5B": "qwen2-1.5b"},
        tokenizer=tokenizer,
    )
)
