"""Settings of generation that a model's folder names, and what becomes of them.

transformers' `generate` takes its defaults from generation_config.json, or without this file from
config.json. Here decoding is greedy unless a call asks for sampling, so the settings of sampling in
the folder (do_sample, temperature, top_k, top_p) have no effect, nor has its number of new tokens.
Of those that change greedy answers, its eos tokens and its repetition penalty are obeyed. The
others are named in a warning, or refused where scores are compared.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorage_jax.errors import WeightsError, denied
from lorage_jax.infer.sample import Sampling, sampling_of
from lorage_jax.models.model import Model

_log = logging.getLogger(__name__)

FILE, CONFIG = "generation_config.json", "config.json"

# Settings of generation by which greedy answers do not change, whatever their value.
GREEDY = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("top_h", "seed", "use_cache", "cache_implementation", "cache_config", "return_legacy_cache"),
    *("pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "length_penalty", "early_stopping", "num_assistant_tokens"),
    *(
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "prompt_lookup_num_tokens",
    ),
    *("max_matching_ngram_size", "assistant_early_exit", "prefill_chunk_size", "compile_config"),
    *("disable_compile", "max_time", "low_memory", "is_assistant", "renormalize_logits"),
    *(
        "remove_invalid_values",
        "trust_remote_code",
        "truncation",
        "padding",
        "assistant_lookbehind",
    ),
    *(
        "target_lookbehind",
        "generation_kwargs",
        "_from_model_config",
        "chat_format",
        "max_window_size",
    ),
)
# Those by which they do not change at these values; None never changes them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "penalty_alpha": (0.0,),
    "stop_strings": ([],),
    "constraints": ([],),
    "force_words_ids": ([],),
}
OBEYED = ("until", "max_gen_toks", "eos_token_id", "max_length", "max_new_tokens")


def unobeyed(settings: Mapping[str, Any]) -> list[str]:
    """The settings of generation that would change greedy answers, as `name=value`."""
    return [
        f"{name}={value!r}"
        for name, value in settings.items()
        if value is not None
        and name not in (*OBEYED, *GREEDY)
        and value not in NEUTRAL.get(name, ())
    ]


def generation_defaults(model: Model) -> dict[str, Any]:
    """The settings that transformers' `generate` would take from the model's folder.

    Fields that it does not know have no effect there, and are left out. Raises WeightsError if the
    file is damaged.
    """
    if model.source is None:
        return {}
    path = _file(model.source)
    values = _read(path)
    if path.name == CONFIG:
        inside = values.get("text_config")
        values |= inside if isinstance(inside, dict) else {}
    return {name: value for name, value in values.items() if name in _known()}


def _file(folder: str | Path) -> Path:
    """The file of a model's folder that names its settings of generation."""
    own = Path(folder) / FILE
    return own if own.is_file() else Path(folder) / CONFIG


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except PermissionError:
        raise WeightsError(denied(path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected a JSON object.")
    return values


@functools.cache
def _known() -> frozenset[str]:
    from transformers import GenerationConfig

    return frozenset(GenerationConfig().to_dict())


def default_penalty(model: Model) -> float:
    """The repetition penalty that the folder names; 1, which has no effect, without one."""
    value = generation_defaults(model).get("repetition_penalty")
    if model.source is None or value is None:
        return 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise WeightsError(
            f"{_file(model.source)}: repetition_penalty is {value!r}; expected a number above 0."
        )
    return float(value)


def sampling_for(model: Model, sampling: Sampling | None, **fields: Any) -> Sampling:
    """`sampling_of`, by default with the repetition penalty of the model's folder.

    A warning names settings of the folder that are not obeyed.
    """
    if sampling is None:
        fields["repetition_penalty"] = default_penalty(model)
    notice_unobeyed(model)
    return sampling_of(sampling, **fields)


def notice_unobeyed(model: Model) -> None:
    """Logs a warning, once for each folder, of settings that would change greedy answers."""
    obeyed = {"do_sample": None, "repetition_penalty": None}
    if found := unobeyed(generation_defaults(model) | obeyed):
        _warn(str(model.source), ", ".join(found))


@functools.cache
def _warn(folder: str, settings: str) -> None:
    _log.warning(
        "%s asks for %s, which transformers obeys and lorage_jax does not: answers may differ.",
        folder,
        settings,
    )
