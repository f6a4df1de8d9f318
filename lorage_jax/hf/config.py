"""Converts Hugging Face `config.json` to `ModelConfig` and back.

A field that transformers would read and the decoder does not compute is refused: a model that would
be computed wrongly does not load.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import lorage_jax.hf.families  # noqa: F401  its files register themselves
from lorage_jax import nano, smollm2
from lorage_jax.bundled import GENERATORS, kept_models
from lorage_jax.config import ModelConfig, RopeScaling
from lorage_jax.errors import LorageError, WeightsError, bullets, denied
from lorage_jax.files.hub import is_hub_name
from lorage_jax.hf.config_fields import Declared
from lorage_jax.hf.family import ACTIVATIONS, FAMILIES, Get, get_family, rope_parameters
from lorage_jax.hf.quantised import refuse_quantised_config

# Models inside the folders that `lorage specialize` and `lorage pretrain` write.
OUTPUTS = ("merged", "model")
# Scalings of rotary positions -> the fields that each must have.
SCALINGS = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
# Fields by which models of other kinds are known -> what such a model is.
_EXPERTS = "it is a mixture of experts, which would need a router over several FFNs in every layer"
_STATES = "it has state-space or linear-attention layers, which the decoder does not compute"
FOREIGN = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), _EXPERTS),
    **dict.fromkeys(("state_size", "mamba_d_state", "linear_num_key_heads"), _STATES),
    "vision_config": "it is a model for images and text; export its language model by itself",
    "is_encoder_decoder": "it has an encoder, and only decoders are read here",
}
LENGTHS = "its angles depend on the length of the text, so cached keys would have to turn again"


def no_folder(path: str | Path) -> str:
    """The message for a path that is not a folder; it helps with names of the Hub and bundles.

    A name of the Hub is OWNER/NAME, if there is no folder OWNER here.
    """
    path, said = Path(path), ""
    name = path.as_posix()
    if name in GENERATORS:
        edges = {nano.NAME: nano.EDGE, smollm2.NAME: kept_models() / smollm2.MODEL}
        said = f" {name} is a bundled generator, whose edge is {edges[name]}."
    elif is_hub_name(path) and not path.parent.exists():
        said = f" If it is on the Hub, fetch it: hf download {name} --local-dir {path.name}"
    return f"{path} is not a folder. Expected a Hugging Face model folder, or a GGUF file.{said}"


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json of a folder. Raises WeightsError if it is missing or not a JSON object."""
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if not Path(folder).is_dir():
            raise WeightsError(no_folder(folder)) from None
        inside = [Path(folder) / name for name in OUTPUTS]
        found = [str(one) for one in inside if (one / "config.json").is_file()]
        raise WeightsError(
            f"{folder} has no config.json. Expected a Hugging Face model folder (config.json, "
            f"tokenizer files, *.safetensors){f'; did you mean {found[0]}?' if found else '.'}"
        ) from None
    except PermissionError:
        raise WeightsError(denied(path)) from None
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
    refuse_quantised_config(folder, raw)
    family = raw.get("model_type")
    multimodal = is_multimodal(raw)
    if not multimodal:
        _check_family(folder, raw)
    # transformers fills in the defaults that a family's config.json may leave out.
    from transformers import AutoConfig

    try:
        full = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises many types; all of them mean a bad config
        message = " ".join(str(error).split())[:300] or repr(error)
        raise WeightsError(f"{folder}/config.json is refused by transformers: {message}") from None
    if multimodal:
        full, raw = _text_part(full, raw)
    elif full.model_type != family:  # transformers reads such a mistral as another model
        _check_family(folder, raw | {"model_type": full.model_type})
    try:
        config = from_hf_config(full, raw, str(folder))
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise WeightsError(
            f"{folder}/config.json has a value of the wrong type: {error}."
        ) from None
    more = [i for i in generation_eos(Path(folder)) if i not in config.eos_ids]
    return dataclasses.replace(config, eos_ids=(*config.eos_ids, *more))


def _check_family(folder: Path, raw: dict[str, Any]) -> None:
    """Raises WeightsError unless model_type is a supported family."""
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise WeightsError(
            f"{folder}: model_type is {family!r} (architectures {raw.get('architectures')}); "
            f"{_near(raw)}supported are {', '.join(FAMILIES)}."
        )


def is_multimodal(raw: dict[str, Any]) -> bool:
    """True for the config.json of a model for images and text whose text part is supported."""
    kinds = [family.multimodal for family in FAMILIES.values() if family.multimodal is not None]
    return raw.get("model_type") in kinds


def _text_part(full: Any, raw: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The text model's config and its own fields; special tokens are the whole model's."""
    text = full.text_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if raw.get(name) is not None:
            setattr(text, name, raw[name])
    return text, raw.get("text_config") or {}


def _near(raw: dict[str, Any]) -> str:
    """Describes a model of an unsupported type, as far as its name or fields allow."""
    near = {name: what for family in FAMILIES.values() for name, what in family.near.items()}
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in near:
        return f"{near[kind]}; "
    text = raw.get("text_config")
    fields = raw | (text if isinstance(text, dict) else {})
    return "".join(f"{what}; " for name, what in FOREIGN.items() if fields.get(name))


def generation_eos(folder: Path) -> list[int]:
    """Eos ids from generation_config.json, where chat models list their end-of-turn token."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    try:
        eos = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except PermissionError:
        raise WeightsError(denied(path)) from None
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
        raw: the fields in the file itself.
        where: the folder, for messages.

    Raises WeightsError that names every unsupported field.
    """
    family = get_family(hf.model_type)
    declared = Declared(family, hf)
    problems = declared.problems(raw)
    if getattr(hf, "is_heterogeneous", False):  # then no field may be read for all layers
        raise WeightsError(f"{where}/config.json:\n{bullets(problems)}")

    def get(name: str, default: Any = None) -> Any:
        own = family.names.get(name, name)
        value = getattr(hf, own, None) if own is not None and own in declared.names else None
        return default if value is None else value

    problems += family.problems(get)
    rope = get("rope_parameters", {})
    rope = rope.get("full_attention", rope)  # of sliding layers, the family's `read` takes care
    partial = rope.get("partial_rotary_factor", 1.0)
    if partial != 1.0 and "partial_rotary_factor" not in family.reads:
        problems.append(f"partial_rotary_factor {partial} is not supported")
    learned = family.fields.get("position_offset") is not None
    fields = _common(get, problems, None if learned else rope)
    fields |= dict(family.fields) | family.read(get)
    if problems:
        raise WeightsError(f"{where}/config.json:\n{bullets(problems)}")
    try:
        return ModelConfig(family=family.name, **fields)
    except LorageError as error:
        raise WeightsError(f"{where}/config.json: {error}") from None


def _common(get: Get, problems: list[str], rope: dict[str, Any] | None) -> dict[str, Any]:
    """The `ModelConfig` fields that are read in the same way for all families.

    `rope`: base and scaling of rotary positions; None if positions are learned.
    """
    theta, scaling = (10_000.0, None) if rope is None else _rope(rope, problems)
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
    if kind not in SCALINGS:
        why = f": {LENGTHS}" if kind in ("dynamic", "longrope") else ""
        problems.append(
            f"rope_type {kind!r} is not supported{why} (supported: default, {', '.join(SCALINGS)})"
        )
        return float(theta), None
    missing = [name for name in SCALINGS[kind] if rope.get(name) is None]
    if missing:
        problems.append(f"rope_type {kind} lacks {', '.join(missing)}")
        return float(theta), None
    fields: dict[str, Any] = {"factor": float(rope["factor"])}
    if kind != "linear":
        fields["original_max_positions"] = int(rope["original_max_position_embeddings"])
    if kind == "llama3":
        fields["low_freq_factor"] = float(rope["low_freq_factor"])
        fields["high_freq_factor"] = float(rope["high_freq_factor"])
    if kind == "yarn":
        fields |= _yarn(rope)
    return float(theta), RopeScaling(kind=kind, **fields)


def _yarn(rope: dict[str, Any]) -> dict[str, Any]:
    """The fields that only yarn has, with transformers' defaults."""

    def growth(strength: float) -> float:
        return 1.0 + 0.1 * strength * math.log(rope["factor"]) if rope["factor"] > 1 else 1.0

    attention = rope.get("attention_factor")
    if attention is None:
        upper, lower = rope.get("mscale"), rope.get("mscale_all_dim")
        attention = growth(upper) / growth(lower) if upper and lower else growth(1.0)
    return {
        "beta_fast": float(rope.get("beta_fast") or 32),
        "beta_slow": float(rope.get("beta_slow") or 1),
        "truncate": bool(rope.get("truncate", True)),
        "attention_factor": float(attention),
    }


def to_hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json with which transformers loads a model of this `ModelConfig`."""
    family = get_family(config.family)
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
        "rope_parameters": rope_parameters(config),
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos,
        "pad_token_id": config.pad_id,
    }
    named = {family.names.get(name, name): value for name, value in shared.items()}
    return {name: value for name, value in named.items() if name is not None} | family.write(config)
