"""Mistral: llama without biases; a sliding window, if there is one, is in all layers."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, Get, activation, register
from lorage_jax.models.presets import plain_decoder

FIELDS = {"qkv_bias": False, "out_bias": False, "ffn_bias": False}


def _read(get: Get) -> dict[str, Any]:
    window = get("sliding_window")
    return {"window": window, "sliding": (window is not None,) * get("num_hidden_layers")}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": activation(config), "sliding_window": config.window}


register(
    Family(
        "mistral",
        "MistralForCausalLM",
        fields=FIELDS,
        read=_read,
        write=_write,
        near={
            "mixtral": "Mixtral is a mixture of experts; it would need a router over several FFNs "
            "in every layer",
            "mistral3": "Mistral 3 adds a vision tower to a Mistral; export its language model as "
            "a mistral",
            "ministral": "Ministral mixes sliding and full layers, which Mistral's file does not "
            "read",
            "ministral3": "Ministral 3 scales queries by their position, which the decoder does "
            "not compute",
        },
        shapes={
            "mistral-7b": plain_decoder(
                "mistral",
                vocab_size=32_000,
                width=4096,
                layers=32,
                heads=32,
                kv_heads=8,
                ffn_width=14_336,
                max_positions=32_768,
                window=4096,
                sliding=(True,) * 32,
                bos_id=1,
                eos_ids=(2,),
                **FIELDS,
            )
        },
        known={"Mistral-7B-v0.1": "mistral-7b"},
    )
)
