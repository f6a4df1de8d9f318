"""SmolLM3: llama in which every fourth layer, or those that the config lists, has no rope."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, Get, activation, layer_types, register
from lorage_jax.models.presets import plain_decoder


def _read(get: Get) -> dict[str, Any]:
    layers = get("num_hidden_layers")
    rotated = get("no_rope_layers")  # 1 where the layer has rope, in spite of its name
    return {"unrotated": tuple(not one for one in rotated[:layers])}


def _problems(get: Get) -> list[str]:
    listed, layers = len(get("no_rope_layers")), get("num_hidden_layers")
    if listed >= layers:
        return []
    return [f"no_rope_layers lists {listed} layers, num_hidden_layers is {layers}"]


def _write(config: ModelConfig) -> dict[str, Any]:
    unrotated = config.unrotated or (False,) * config.layers
    return {
        "hidden_act": activation(config),
        "attention_bias": config.out_bias,
        "mlp_bias": config.ffn_bias,
        "no_rope_layers": [int(not one) for one in unrotated],
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": layer_types(config),
    }


register(
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        read=_read,
        problems=_problems,
        reads=frozenset({"no_rope_layers", "no_rope_layer_interval"}),
        write=_write,
        shapes={
            "smollm3-3b": plain_decoder(
                "smollm3",
                vocab_size=128_256,
                width=2048,
                layers=36,
                heads=16,
                kv_heads=4,
                ffn_width=11_008,
                max_positions=65_536,
                norm_eps=1e-6,
                rope_theta=5_000_000.0,
                tied_head=True,
                unrotated=(False, False, False, True) * 9,
                bos_id=128_000,
                eos_ids=(128_012,),
                pad_id=128_004,
            )
        },
        known={"SmolLM3-3B": "smollm3-3b", "SmolLM3-3B-Base": "smollm3-3b"},
    )
)
