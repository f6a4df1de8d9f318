"""OLMo 2: norms after attention and FFN only, and of q and k over the whole width."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, Row, activation, register
from lorage_jax.models.presets import plain_decoder

FIELDS = {"pre_norms": False, "post_norms": True, "qk_norm": "width"}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": activation(config), "attention_bias": config.out_bias}


register(
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        fields=FIELDS,
        write=_write,
        rows={
            "attn_post_norm": Row("post_attention_layernorm.weight"),
            "ffn_post_norm": Row("post_feedforward_layernorm.weight"),
            "q_norm": Row("self_attn.q_norm.weight"),
            "k_norm": Row("self_attn.k_norm.weight"),
        },
        near={
            "olmo": "OLMo 1 has norms without weights, which the decoder does not compute",
            "olmo3": "OLMo 3 has a rope of its own in its sliding layers, which the decoder does "
            "not compute",
            "olmoe": "OLMoE is a mixture of experts; it would need a router over several FFNs in "
            "every layer",
        },
        shapes={
            "olmo2-1b": plain_decoder(
                "olmo2",
                vocab_size=100_352,
                width=2048,
                layers=16,
                heads=16,
                kv_heads=16,
                ffn_width=8192,
                max_positions=4096,
                norm_eps=1e-6,
                rope_theta=500_000.0,
                eos_ids=(100_257,),
                pad_id=100_277,
                **FIELDS,
            )
        },
        known={"OLMo-2-0425-1B": "olmo2-1b"},
    )
)
