"""The keys of a GGUF file as fields of a `ModelConfig`."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from lorage_jax import rotary
from lorage_jax.config import RopeScaling
from lorage_jax.errors import WeightsError, bullets
from lorage_jax.files.gguf import GgufFile
from lorage_jax.gguf.architectures import ARCHITECTURES, Architecture, query_scale
from lorage_jax.gguf.tensors import ROPE, rope_divisors

# A llama is read for the architecture `llama`, which mistral has, too.
FAMILIES: dict[str, str] = {}
for _family, _row in ARCHITECTURES.items():
    FAMILIES.setdefault(_row.name, _family)
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
LONG = ("rope_factors_long.weight", "rope_factors_short.weight")
# Keys of gemma2 whose defaults llama.cpp has.
SOFTCAPS = (50.0, 30.0)
UNREAD = ("rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor")
QUERY_SCALE = "attention.scale"
ATTENTION_FACTOR = "rope.scaling.attn_factor"


def read_fields(file: GgufFile) -> dict[str, Any]:
    """The fields of a model's config but those that its family implies.

    Raises WeightsError for a file that holds no model, and for one that is not computed here, with
    all reasons.
    """
    refuse_others(file)
    row = ARCHITECTURES[FAMILIES[file.keys["general.architecture"]]]
    keys = _Keys(file, row.name)
    fields = _fields(file, row, keys)
    if keys.problems:
        raise WeightsError(f"{file.path}:\n{bullets(keys.problems)}")
    return {"family": FAMILIES[row.name], **fields}


def refuse_others(file: GgufFile) -> None:
    """Raises WeightsError for a file that is not a whole model of a known architecture."""
    path, keys = file.path, file.keys
    kind, name = keys.get("general.type", "model"), keys.get("general.architecture")
    part = PART.search(path.name)
    if keys.get("split.count", 1) > 1 or (part is not None and int(part[1]) > 1):
        raise WeightsError(
            f"{path} is one part of a split model. Join its parts with llama.cpp: "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    if kind == "adapter":
        raise WeightsError(
            f"{path} is a LoRA adapter for llama.cpp, not a model: llama-server -m BASE.gguf "
            f"--lora {path}. Here, the edge takes its card (lorage inspect {path}) or a PEFT "
            "folder."
        )
    if kind != "model":
        raise WeightsError(f"{path} is a GGUF file of the type {kind!r}; expected a model.")
    if name not in FAMILIES:
        raise WeightsError(
            f"{path}: its architecture is {name!r}; expected one of {', '.join(FAMILIES)}."
        )
    if not file.tensors:
        raise WeightsError(f"{path} holds a vocabulary and no weights; expected a whole model.")


class _Keys:
    """The keys of one architecture; what is wrong with them is collected in `problems`."""

    def __init__(self, file: GgufFile, architecture: str):
        self.file, self.architecture = file, architecture
        self.problems: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        """A number or text; of a list with a value for each layer, the one that all have."""
        value = self.file.keys.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                self.problems.append(
                    f"{self.architecture}.{name} differs from layer to layer: {value!r:.80}"
                )
                return default
            value = value[0]
        return decimal(value) if isinstance(value, float) else value

    def number(self, name: str, default: Any = None) -> Any:
        """A number that the file must have, unless there is a default."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            self.problems.append(
                f"{self.architecture}.{name} is {value!r}; expected a number above 0"
            )
            return 1
        return value


def decimal(value: float) -> float:
    """The shortest decimal of a float32, as people wrote it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _fields(file: GgufFile, row: Architecture, keys: _Keys) -> dict[str, Any]:
    width, layers = keys.number("embedding_length"), keys.number("block_count")
    if layers > len(file.tensors):
        keys.problems.append(f"{layers} layers for {len(file.tensors)} tensors")
        layers = 1
    heads = keys.number("attention.head_count")
    head_dim = keys.number("attention.key_length", width // heads)
    if (value_dim := keys.number("attention.value_length", head_dim)) != head_dim:
        keys.problems.append(f"values have {value_dim} channels, keys {head_dim}")
    if (experts := keys.get("expert_count", 0)) > 0:
        keys.problems.append(
            f"it is a mixture of {experts} experts, which would need a router over several FFNs in "
            "every layer"
        )
    _refuse_unread(row, keys)
    rotary = keys.number("rope.dimension_count", head_dim)
    if rotary != head_dim and not row.partial_rope:
        keys.problems.append(f"{rotary} of {head_dim} channels of a head rotate")
    theta = keys.number("rope.freq_base", 10_000.0)
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None:
        keys.problems.append("token_embd.weight is missing")
    return {
        "vocab_size": 1 if embeddings is None else embeddings.shape[0],
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "ffn_width": keys.number("feed_forward_length"),
        "max_positions": keys.number("context_length"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": float(theta),
        "rope_scaling": _scaling(file, keys, rotary, theta),
        "rotary_fraction": rotary / head_dim,
        "tied_head": "output.weight" not in file.tensors,
        "activation": row.activation,
        **_factors(row, keys, query_scale(row, layers, width / heads, head_dim)),
        **_biases(file),
        **_caps(row, keys),
        **_windows(row, keys, layers),
        **_tokens(file),
    }


def _refuse_unread(row: Architecture, keys: _Keys) -> None:
    """Notes keys that change the arithmetic in a way that is not computed here."""
    unread = UNREAD if row.factors else (*UNREAD, QUERY_SCALE)
    keys.problems += [
        f"{row.name}.{name} is not supported" for name in unread if keys.get(name) is not None
    ]
    if keys.get("attention.causal", True) is False:
        keys.problems.append(
            f"{row.name}.attention.causal is False: its tokens see those after them, which a model "
            "that writes text does not"
        )


def _factors(row: Architecture, keys: _Keys, query_scale: float) -> dict[str, Any]:
    """The factors of the arithmetic; `query_scale` is that of a file without one."""
    if not row.factors:
        return {"query_scale": query_scale}
    return {
        "query_scale": keys.number(QUERY_SCALE, query_scale),
        "embedding_multiplier": keys.number("embedding_scale", 1.0),
        "residual_multiplier": keys.number("residual_scale", 1.0),
        "logits_divisor": keys.number("logit_scale", 1.0),
    }


def _biases(file: GgufFile) -> dict[str, Any]:
    def has(*modules: str) -> bool:
        return any(f"blk.0.{module}.bias" in file.tensors for module in modules)

    return {
        "qkv_bias": has("attn_q", "attn_k", "attn_v"),
        "out_bias": has("attn_output"),
        "ffn_bias": has("ffn_gate", "ffn_up", "ffn_down"),
    }


def _caps(row: Architecture, keys: _Keys) -> dict[str, Any]:
    attention, final = SOFTCAPS if row.softcaps else (None, None)
    found = keys.get("attn_logit_softcapping", attention) if row.softcaps else None
    return {
        "attn_softcap": found,
        "final_softcap": keys.get("final_logit_softcapping", final),
    }


def _windows(row: Architecture, keys: _Keys, layers: int) -> dict[str, Any]:
    """The layers that slide and those that rotate (llama.cpp has no windows elsewhere)."""
    window = keys.get("attention.sliding_window", row.default_window)
    found: dict[str, Any] = {"window": None, "sliding": (False,) * layers}
    if row.full_every is not None and window:
        every = keys.get("attention.sliding_window_pattern", row.full_every)
        sliding = tuple(bool(every) and (layer + 1) % every != 0 for layer in range(layers))
        found = {"window": window, "sliding": sliding}
    if row.trained_windows and window:
        found = {"window": window, "sliding": (True,) * layers}
    if row.local_rope:
        found["local_rope_theta"] = float(keys.number("rope.freq_base_swa", 10_000.0))
    if row.unrotated_every is not None:
        every = row.unrotated_every
        found["unrotated"] = tuple((layer + 1) % every == 0 for layer in range(layers))
    return found


def _tokens(file: GgufFile) -> dict[str, Any]:
    """The ids of begin and end of a text."""
    names = ("eos", "eot", "eom")
    ends = [file.keys.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    return {
        "bos_id": file.keys.get("tokenizer.ggml.bos_token_id"),
        "eos_ids": tuple(dict.fromkeys(end for end in ends if end is not None)),
        "pad_id": file.keys.get("tokenizer.ggml.padding_token_id"),
    }


def _scaling(file: GgufFile, keys: _Keys, size: int, theta: float) -> RopeScaling | None:
    """`_rope`, and a problem for a factor of the attention that it does not hold."""
    found, factor = _rope(file, keys, size, theta), keys.get(ATTENTION_FACTOR, 1.0)
    if factor != 1 and (found is None or found.kind != "yarn"):
        keys.problems.append(f"{ATTENTION_FACTOR} is {factor!r} without yarn; expected 1")
    return found


def _rope(file: GgufFile, keys: _Keys, size: int, theta: float) -> RopeScaling | None:
    """The scaling of rotary positions, of which `size` channels of a head rotate."""
    kind = keys.get("rope.scaling.type", "linear")
    factor = float(keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 1)
    if any(name in file.tensors for name in LONG):
        keys.problems.append("rope has factors for long texts (longrope)")
    if ROPE in file.tensors:
        divisors = np.asarray(file.rows(ROPE, 0, size // 2), np.float32).reshape(-1)
        original = keys.get("rope.scaling.original_context_length")
        if np.all(divisors == 1):
            return None
        found = _llama3(divisors, size, theta, original)
        if found is None:
            keys.problems.append(
                f"{ROPE} holds divisors of rope frequencies that are not those of Llama 3; load "
                "the Hugging Face folder of this model"
            )
        return found
    if kind == "none" or factor == 1:
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        keys.problems.append(f"rope scaled by {kind!r}; expected none, linear or yarn")
        return None
    growth = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=keys.number("rope.scaling.original_context_length"),
        beta_fast=float(keys.get("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(keys.get("rope.scaling.yarn_beta_slow", 1.0)),
        attention_factor=growth * keys.get(ATTENTION_FACTOR, 1.0),
    )


def _llama3(
    divisors: np.ndarray, size: int, theta: float, original: int | None
) -> RopeScaling | None:
    """The scaling of Llama 3 that has these divisors; a file holds nothing else of it.

    None without one: between the wavelengths that stay and those that are scaled by the whole
    factor is a factor of four, as in all of its models.
    """
    plain = np.asarray(rotary.frequencies(size, theta, None), np.float64)
    if divisors.shape != plain.shape or not np.all(np.isfinite(divisors) & (divisors >= 1)):
        return None
    factor = decimal(float(divisors.max()))
    smooth = (1 / divisors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    between = (smooth > 1e-3) & (smooth < 1 - 1e-3)
    lengths = 2 * np.pi / plain * (1 + 3 * smooth)
    guesses = {original, 8192, *(round(length) for length in lengths[between])}
    for guess in guesses - {None}:
        scaling = RopeScaling("llama3", factor, 1.0, 4.0, guess)
        if np.allclose(rope_divisors(size, theta, scaling), divisors, rtol=1e-4):
            return scaling
    return None
