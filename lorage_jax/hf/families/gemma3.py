"""Gemma 3: Gemma 2 with norms of q and k instead of soft-caps, and a rope for sliding layers."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.families.gemma2 import ROWS
from lorage_jax.hf.family import Family, Get, activation, layer_types, register, rope_parameters
from lorage_jax.models.presets import plain_decoder

_ALTUP = (
    "has embeddings of its own in every layer and several residual streams (AltUp), which the "
    "decoder does not compute"
)
_GEMMA4 = "has heads of two sizes and layers that share keys, which the decoder does not compute"
FIELDS = {"norm_offset": 1.0, "scaled_embedding": True, "post_norms": True, "qk_norm": "head"}


def _read(get: Get) -> dict[str, Any]:
    theta = get("rope_parameters")["sliding_attention"]["rope_theta"]
    # transformers' Gemma 3 has a field for a soft-cap of attention, too, but does not apply it.
    return {"final_softcap": get("final_logit_softcapping"), "local_rope_theta": float(theta)}


def _problems(get: Get) -> list[str]:
    kind = get("rope_parameters")["sliding_attention"].get("rope_type", "default")
    if kind == "default":
        return []
    return [f"rope_type {kind!r} of sliding layers is not supported (default)"]


def _write(config: ModelConfig) -> dict[str, Any]:
    scalar = round(config.query_scale**-2, 6)
    theta = config.local_rope_theta or config.rope_theta
    return {
        "hidden_activation": activation(config),
        "attention_bias": config.out_bias,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": config.window,
        "layer_types": layer_types(config),
        "rope_parameters": {
            "full_attention": rope_parameters(config),
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
    }


def _shape(width: int, layers: int, ffn_width: int) -> ModelConfig:
    return plain_decoder(
        "gemma3_text",
        vocab_size=262_144,
        width=width,
        layers=layers,
        heads=4,
        kv_heads=1,
        head_dim=256,
        ffn_width=ffn_width,
        max_positions=32_768,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        tied_head=True,
        activation="gelu_tanh",
        window=512,
        sliding=tuple((i + 1) % 6 != 0 for i in range(layers)),
        bos_id=2,
        eos_ids=(1,),
        pad_id=0,
        **FIELDS,
    )


register(
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        fields=FIELDS,
        read=_read,
        problems=_problems,
        # transformers makes rope_parameters and layer_types of them.
        reads=frozenset(
            {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"}
        ),
        write=_write,
        rows=ROWS,
        multimodal="gemma3",
        near={
            "siglip_vision_model": "SigLIP is the vision tower of a multimodal model, and nothing "
            "here computes images; load the folder of the whole model for its text part",
            "gemma3n": f"Gemma 3n {_ALTUP}",
            "gemma3n_text": f"Gemma 3n {_ALTUP}",
            "gemma4": f"Gemma 4 {_GEMMA4}",
            "gemma4_text": f"Gemma 4 {_GEMMA4}",
        },
        shapes={"gemma3-1b": _shape(1152, 26, 6912), "gemma3-270m": _shape(640, 18, 2048)},
        known={
            "gemma-3-1b-pt": "gemma3-1b",
            "gemma-3-1b-it": "gemma3-1b",
            "gemma-3-270m": "gemma3-270m",
            "gemma-3-270m-it": "gemma3-270m",
        },
    )
)
