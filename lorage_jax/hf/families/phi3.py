"""Phi-3: llama whose file fuses q, k and v, and gate and up; windows in all layers."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, Get, Row, activation, register
from lorage_jax.models.presets import plain_decoder

QKV = Row("self_attn.qkv_proj.weight", 1, fused=("q", "k", "v"))
GATE_UP = Row("mlp.gate_up_proj.weight", 1, fused=("gate", "up"))


def _read(get: Get) -> dict[str, Any]:
    window = get("sliding_window")
    return {
        "window": window,
        "sliding": (window is not None,) * get("num_hidden_layers"),
        "rotary_fraction": float(get("rope_parameters").get("partial_rotary_factor", 1.0)),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": activation(config), "sliding_window": config.window}


register(
    Family(
        "phi3",
        "Phi3ForCausalLM",
        read=_read,
        names={"attention_bias": None, "mlp_bias": None},
        # Only ropes of type longrope depend on original_max_position_embeddings.
        reads=frozenset({"original_max_position_embeddings", "partial_rotary_factor"}),
        write=_write,
        rows=dict.fromkeys(QKV.fused, QKV) | dict.fromkeys(GATE_UP.fused, GATE_UP),
        near={
            "phi": "Phi 1 and 2 run attention and FFN side by side, which the decoder does not "
            "compute",
            "phimoe": "Phi-3.5-MoE is a mixture of experts; it would need a router over several "
            "FFNs in every layer",
            "phi4mm": "Phi-4-multimodal adds images, sound and adapters of its own to a Phi-3; "
            "export its language model as a phi3",
            "phi4_multimodal": "Phi-4-multimodal adds images, sound and adapters of its own to a "
            "Phi-3; export its language model as a phi3",
        },
        shapes={
            "phi3-mini": plain_decoder(
                "phi3",
                vocab_size=32_064,
                width=3072,
                layers=32,
                heads=32,
                kv_heads=32,
                ffn_width=8192,
                max_positions=4096,
                window=2047,
                sliding=(True,) * 32,
                bos_id=1,
                eos_ids=(32_000,),
                pad_id=32_000,
            )
        },
        known={"Phi-3-mini-4k-instruct": "phi3-mini"},
    )
)
