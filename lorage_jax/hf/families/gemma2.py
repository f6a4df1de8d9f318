"""Gemma 2: Gemma with norms after attention and FFN, soft-caps and alternating windows."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, Get, Row, activation, layer_types, register
from lorage_jax.models.presets import plain_decoder

FIELDS = {"norm_offset": 1.0, "scaled_embedding": True, "post_norms": True}
# Unlike in llama, `post_attention_layernorm` follows attention; the FFN has its own norms.
ROWS = {
    "attn_post_norm": Row("post_attention_layernorm.weight"),
    "ffn_norm": Row("pre_feedforward_layernorm.weight"),
    "ffn_post_norm": Row("post_feedforward_layernorm.weight"),
}


def _read(get: Get) -> dict[str, Any]:
    return {
        "attn_softcap": get("attn_logit_softcapping"),
        "final_softcap": get("final_logit_softcapping"),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    scalar = round(config.query_scale**-2, 6)
    return {
        "hidden_activation": activation(config),
        "attention_bias": config.out_bias,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": config.window,
        "layer_types": layer_types(config),
    }


register(
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        fields=FIELDS,
        read=_read,
        write=_write,
        rows=ROWS,
        shapes={
            "gemma2-2b": plain_decoder(
                "gemma2",
                vocab_size=256_000,
                width=2304,
                layers=26,
                heads=8,
                kv_heads=4,
                head_dim=256,
                ffn_width=9216,
                max_positions=8192,
                norm_eps=1e-6,
                tied_head=True,
                activation="gelu_tanh",
                attn_softcap=50.0,
                final_softcap=30.0,
                window=4096,
                sliding=(True, False) * 13,
                bos_id=2,
                eos_ids=(1,),
                pad_id=0,
                **FIELDS,
            )
        },
        known={"gemma-2-2b": "gemma2-2b"},
    )
)
