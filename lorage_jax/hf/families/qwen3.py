"""Qwen3: norms of q and k over each head, and optional sliding windows in the upper layers."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.families.qwen2 import tokenizer
from lorage_jax.hf.family import Family, activation, layer_types, register
from lorage_jax.models.presets import plain_decoder

FIELDS = {"qk_norm": "head"}
_EXPERTS = "a mixture of experts; it would need a router over several FFNs in every layer"
_LINEAR = "has layers of linear attention (gated delta rule), which the decoder does not compute"


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": activation(config),
        "attention_bias": config.out_bias,
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": layer_types(config),
    }


def _shape(width: int, layers: int, heads: int, ffn_width: int, tied_head: bool) -> ModelConfig:
    return plain_decoder(
        "qwen3",
        vocab_size=151_936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        ffn_width=ffn_width,
        max_positions=40_960,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
        tied_head=tied_head,
        bos_id=151_643,
        eos_ids=(151_645,),
        **FIELDS,
    )


register(
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        fields=FIELDS,
        write=_write,
        near={
            "qwen2_moe": f"Qwen2 MoE is {_EXPERTS}",
            "qwen3_moe": f"Qwen3 MoE is {_EXPERTS}",
            "qwen3_next": f"Qwen3-Next is {_EXPERTS}, and {_LINEAR}",
            "qwen3_5": f"Qwen3.5 {_LINEAR}",
            "qwen3_5_text": f"Qwen3.5 {_LINEAR}",
            "qwen3_5_moe": f"Qwen3.5 MoE is {_EXPERTS}, and {_LINEAR}",
            "qwen3_vl": "Qwen3-VL adds a vision tower to a Qwen3, and rope in three dimensions, "
            "which the decoder does not compute",
        },
        shapes={
            "qwen3-1.7b": _shape(2048, 28, 16, 6144, True),
            "qwen3-8b": _shape(4096, 36, 32, 12_288, False),
        },
        known={
            "Qwen3-1.7B": "qwen3-1.7b",
            "Qwen3-1.7B-Base": "qwen3-1.7b",
            "Qwen3-8B": "qwen3-8b",
            "Qwen3-8B-Base": "qwen3-8b",
        },
        tokenizer=tokenizer,
    )
)
