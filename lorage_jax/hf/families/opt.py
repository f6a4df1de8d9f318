"""OPT: LayerNorm, learned positions, biases, and an FFN of two projections around a relu."""

from __future__ import annotations

from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Family, Get, Row, activation, register
from lorage_jax.models.presets import plain_decoder

FIELDS = {
    "norm_kind": "layer",
    "norm_eps": 1e-5,
    "position_offset": 2,
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "ffn_bias": True,
}
# Fields of the layouts that other OPT checkpoints have, and the one value that is computed.
_LAYOUT = {
    "do_layer_norm_before": (True, "norms after attention and FFN, as in OPT-350m"),
    "_remove_final_layer_norm": (False, "no norm before the head"),
    "enable_bias": (True, "projections without biases, as in Galactica"),
    "layer_norm_elementwise_affine": (True, "norms without weights"),
}


def _problems(get: Get) -> list[str]:
    problems = [
        f"{name} is {get(name)}: {what}; the decoder computes {name} {str(wanted).lower()} only"
        for name, (wanted, what) in _LAYOUT.items()
        if bool(get(name, wanted)) != wanted
    ]
    width, embedding = get("hidden_size"), get("word_embed_proj_dim")
    if embedding != width:
        problems.append(
            f"word_embed_proj_dim is {embedding}: token embeddings are projected to hidden_size "
            f"{width}, as in OPT-350m; the decoder reads embeddings as wide as the model"
        )
    return problems


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"activation_function": activation(config), "word_embed_proj_dim": config.width}


def _shape(width: int, layers: int, heads: int) -> ModelConfig:
    return plain_decoder(
        "opt",
        vocab_size=50_272,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        ffn_width=4 * width,
        activation="relu",
        tied_head=True,
        bos_id=2,
        eos_ids=(2,),
        pad_id=1,
        **FIELDS,
    )


register(
    Family(
        "opt",
        "OPTForCausalLM",
        fields=FIELDS,
        reads=frozenset({*_LAYOUT, "word_embed_proj_dim"}),
        names={
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "initializer_range": "init_std",
            "num_key_value_heads": None,
            "head_dim": None,
            "rms_norm_eps": None,
            "rope_parameters": None,
            "attention_bias": None,
            "mlp_bias": None,
            "layer_types": None,
            "sliding_window": None,
        },
        problems=_problems,
        write=_write,
        decoder="model.decoder",
        rows={
            "attn_norm": Row("self_attn_layer_norm.weight"),
            "attn_norm_bias": Row("self_attn_layer_norm.bias"),
            "o": Row("self_attn.out_proj.weight", 2),
            "o_bias": Row("self_attn.out_proj.bias"),
            "ffn_norm": Row("final_layer_norm.weight"),
            "ffn_norm_bias": Row("final_layer_norm.bias"),
            "up": Row("fc1.weight", 1),
            "up_bias": Row("fc1.bias"),
            "down": Row("fc2.weight", 1),
            "down_bias": Row("fc2.bias"),
            "positions": Row("embed_positions.weight", table=True),
            "final_norm": Row("final_layer_norm.weight"),
            "final_norm_bias": Row("final_layer_norm.bias"),
        },
        shapes={
            "opt-125m": _shape(768, 12, 12),
            "opt-1.3b": _shape(2048, 24, 32),
            "opt-2.7b": _shape(2560, 32, 32),
        },
        known={"opt-125m": "opt-125m", "opt-1.3b": "opt-1.3b", "opt-2.7b": "opt-2.7b"},
    )
)
