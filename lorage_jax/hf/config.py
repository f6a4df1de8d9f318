"""Converts Hugging Face `config.json` to `ModelConfig` and back.

Every field of a config.json is read here, known not to affect the arithmetic, or refused: a model
that would be computed wrongly does not load.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lorage_jax.hf.families  # noqa: F401  its files register themselves
from lorage_jax.config import ModelConfig, RopeScaling
from lorage_jax.errors import LorageError, WeightsError
from lorage_jax.hf.family import ACTIVATIONS, FAMILIES, Get, get_family

# Fields that do not affect inference.
IGNORED = frozenset(
    "architectures model_type torch_dtype dtype transformers_version use_cache initializer_range "
    "attention_dropout pretraining_tp _name_or_path bos_token_id eos_token_id pad_token_id "
    "unsloth_version unsloth_fixed max_window_layers cache_implementation "
    "_attn_implementation_autoset id2label label2id is_llama_config output_attentions return_dict "
    "output_hidden_states tf_legacy_loss dropout resid_pdrop embd_pdrop layerdrop "
    "activation_dropout prefix auto_map".split()
)
# Fields read below.
READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act hidden_activation max_position_embeddings "
    "rms_norm_eps tie_word_embeddings rope_parameters rope_theta rope_scaling attention_bias "
    "mlp_bias sliding_window use_sliding_window layer_types query_pre_attn_scalar "
    "final_logit_softcapping attn_logit_softcapping".split()
)
# Other known fields, accepted only at values that have no effect.
NEUTRAL = {
    "quantization_config": (None,),
    "use_bidirectional_attention": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "chunk_size_feed_forward": (0, None),
    "rope_interleaved": (None, False),
}
LLAMA3_FIELDS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json of a folder. Raises WeightsError if it is missing or not a JSON object."""
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{folder} has no config.json. Expected a Hugging Face model folder "
            "(config.json, tokenizer files, *.safetensors)."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(raw).__name__}.")
    return raw


def model_config(folder: Path) -> ModelConfig:
    """Reads the `ModelConfig` of a Hugging Face folder.

    Raises WeightsError that names every unsupported field.
    """
    raw = read_config(folder)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise WeightsError(
            f"{folder}: model_type is {family!r} (architectures {raw.get('architectures')}); "
            f"{_near(family)}supported are {', '.join(FAMILIES)}."
        )
    # transformers fills in the defaults that a family's config.json may leave out.
    from transformers import AutoConfig

    try:
        full = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises many types; all of them mean a bad config
        message = " ".join(str(error).split())[:300] or repr(error)
        raise WeightsError(f"{folder}/config.json is refused by transformers: {message}") from None
    try:
        config = from_hf_config(full, raw, str(folder))
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise WeightsError(
            f"{folder}/config.json has a value of the wrong type: {error}."
        ) from None
    more = [i for i in _generation_eos(Path(folder)) if i not in config.eos_ids]
    return dataclasses.replace(config, eos_ids=(*config.eos_ids, *more))


def _near(model_type: Any) -> str:
    """What a model type is that could be taken for a family's; empty if none says so."""
    near = {name: what for family in FAMILIES.values() for name, what in family.near.items()}
    return f"{near[model_type]}; " if isinstance(model_type, str) and model_type in near else ""


def _generation_eos(folder: Path) -> list[int]:
    """Eos ids from generation_config.json, where chat models list their end-of-turn token."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    try:
        eos = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from None
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(i, int) for i in ids):
        raise WeightsError(f"{path}: eos_token_id is {eos!r}; expected a number or a list of them.")
    return ids


def from_hf_config(hf: Any, raw: dict[str, Any], where: str) -> ModelConfig:
    """Converts a transformers config object.

    Args:
        hf: the config object, with transformers' defaults filled in.
        raw: the fields in the file itself; unsupported ones are refused.
        where: the folder, for messages.

    Raises WeightsError that names every unsupported field.
    """
    family = get_family(hf.model_type)
    problems = [
        f"field {name!r} = {json.dumps(value)[:80]} is not supported"
        for name, value in raw.items()
        if name not in IGNORED | READ | family.reads | set(family.names.values())
        and value not in NEUTRAL.get(name, ())
    ]

    def get(name: str, default: Any = None) -> Any:
        own = family.names.get(name, name)
        value = None if own is None else getattr(hf, own, None)
        return default if value is None else value

    problems += family.problems(get)
    partial = get("rope_parameters", {}).get("partial_rotary_factor", 1.0)
    if partial != 1.0 and "partial_rotary_factor" not in family.reads:
        problems.append(f"partial_rotary_factor {partial} is not supported")
    rotary = family.fields.get("position_offset") is None
    fields = _common(get, problems, rotary) | dict(family.fields) | family.read(get)
    if problems:
        raise WeightsError(f"{where}/config.json:\n" + "\n".join(f"  - {p}" for p in problems))
    try:
        return ModelConfig(family=family.name, **fields)
    except LorageError as error:
        raise WeightsError(f"{where}/config.json: {error}") from None


def _common(get: Get, problems: list[str], rotary: bool) -> dict[str, Any]:
    """The `ModelConfig` fields that are read in the same way for all families."""
    theta, scaling = 10_000.0, None
    if rotary:
        theta, scaling = _rope(get("rope_parameters", {}), problems)
    act = get("hidden_activation") or get("hidden_act")
    if act not in ACTIVATIONS:
        problems.append(f"activation {act!r} is not supported (silu, gelu_pytorch_tanh)")
    heads = get("num_attention_heads")
    head_dim = get("head_dim") or get("hidden_size") // heads
    bias, eos = bool(get("attention_bias", False)), get("eos_token_id", [])
    return {
        "vocab_size": get("vocab_size"),
        "width": get("hidden_size"),
        "layers": get("num_hidden_layers"),
        "heads": heads,
        "kv_heads": get("num_key_value_heads", heads),
        "head_dim": head_dim,
        "ffn_width": get("intermediate_size"),
        "max_positions": get("max_position_embeddings"),
        "norm_eps": get("rms_norm_eps"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tied_head": bool(get("tie_word_embeddings", False)),
        "activation": ACTIVATIONS.get(act, act),
        "query_scale": get("query_pre_attn_scalar", head_dim) ** -0.5,
        "qkv_bias": bias,
        "out_bias": bias,
        "ffn_bias": bool(get("mlp_bias", False)),
        "attn_softcap": None,
        "final_softcap": None,
        **_sliding(get, problems),
        "bos_id": get("bos_token_id"),
        "eos_ids": tuple(eos) if isinstance(eos, (list, tuple)) else (eos,),
        "pad_id": get("pad_token_id"),
    }


def _sliding(get: Get, problems: list[str]) -> dict[str, Any]:
    """The sliding window, and the layers that use it."""
    layers = get("num_hidden_layers")
    types = get("layer_types", ["full_attention"] * layers)
    strange = sorted(set(types) - {"full_attention", "sliding_attention"})
    if strange:
        problems.append(f"layer_types {', '.join(strange)} are not supported")
    if len(types) != layers:
        problems.append(f"layer_types lists {len(types)} layers, num_hidden_layers is {layers}")
    slides = "sliding_attention" in types
    return {
        "window": get("sliding_window") if slides else None,
        "sliding": tuple(kind == "sliding_attention" for kind in types),
    }


def _rope(rope: dict[str, Any], problems: list[str]) -> tuple[float, RopeScaling | None]:
    kind = rope.get("rope_type", "default")
    theta = rope.get("rope_theta")
    if theta is None:
        problems.append("rope_theta is missing")
        theta = 0.0
    if kind == "default":
        return float(theta), None
    if kind == "linear":
        return float(theta), RopeScaling(kind="linear", factor=float(rope["factor"]))
    if kind != "llama3":
        problems.append(f"rope_type {kind!r} is not supported (default, linear, llama3)")
        return float(theta), None
    missing = [name for name in LLAMA3_FIELDS if name not in rope]
    if missing:
        problems.append(f"rope_type llama3 lacks {', '.join(missing)}")
        return float(theta), None
    return float(theta), RopeScaling(
        kind="llama3",
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )


def to_hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json with which transformers loads a model of this `ModelConfig`."""
    family = get_family(config.family)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rotary_fraction != 1:
        rope["partial_rotary_factor"] = config.rotary_fraction
    if config.rope_scaling is not None:
        rope |= {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": config.rope_scaling.low_freq_factor,
                "high_freq_factor": config.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": config.rope_scaling.original_max_positions,
            }
    eos = config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None
    shared = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos,
        "pad_token_id": config.pad_id,
    }
    named = {family.names.get(name, name): value for name, value in shared.items()}
    return {name: value for name, value in named.items() if name is not None} | family.write(config)
