"""Settings that lm-eval and transformers give a model: obeyed, without effect, or refused.

A setting that would change the answers and is not obeyed is an error that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from lorage_jax.errors import ConfigError
from lorage_jax.infer.defaults import unobeyed
from lorage_jax.models.model import Model

N = TypeVar("N", int, float)

# Arguments of lm-eval's `hf` model with the values by which nothing changes here; None never does.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "backend": ("default", "causal"),
    "revision": ("main",),
    "subfolder": ("",),
    "truncation": (False,),
    "trust_remote_code": (False,),
    "parallelize": (False,),
    "autogptq": (False,),
    "gptqmodel": (False,),
    "softmax_dtype": ("float32",),
    "enable_thinking": (),
    "think_end_token": (),
    "delta": (),
    "gguf_file": (),
    "mixed_precision_dtype": (),
    "tp_plan": (),
}
# These only say where and how fast torch computes.
IDLE = (
    *("logits_cache", "use_fast_tokenizer", "max_memory_per_gpu", "max_cpu_memory"),
    *(
        "offload_folder",
        "device_map_option",
        "device_map",
        "attn_implementation",
        "low_cpu_mem_usage",
    ),
)


# Settings of generation that lm-eval reads as numbers.
NUMBERS = {
    "max_gen_toks": int,
    "max_new_tokens": int,
    "max_tokens": int,
    "max_completion_tokens": int,
    "temperature": float,
}


def read_number(kind: type[N], name: str, value: Any) -> N:
    """The number in an argument, which is a text if it comes from a command line.

    Raises ConfigError, naming the argument, if there is none.
    """
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} is {value!r}; expected {expected}.") from None


def optional_number(kind: type[N], name: str, value: Any) -> N | None:
    """`read_number`, or None of an argument that is not given."""
    return None if value is None else read_number(kind, name, value)


def read_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of generation with `NUMBERS` as such. Raises ConfigError for one that is none."""
    given = [name for name in NUMBERS if settings.get(name) is not None]
    read = {name: read_number(NUMBERS[name], name, settings[name]) for name in given}
    return {**settings, **read}


def longest_request(max_length: int | str | None, model: Model) -> int | None:
    """The argument max_length. Raises ConfigError unless the model's context has room for it."""
    length, room = optional_number(int, "max_length", max_length), model.config.max_positions
    if length is not None and not 1 <= length <= room:
        raise ConfigError(f"max_length is {max_length}; expected 1 to {room}, the model's context.")
    return length


def check_arguments(values: Mapping[str, Any]) -> None:
    """Raises ConfigError for an argument of the model that is not obeyed and would matter."""
    for name, value in values.items():
        if value is None or name in IDLE or value in ARGUMENTS.get(name, ()):
            continue
        if name in ARGUMENTS:
            raise ConfigError(
                f"{name}={value!r} is not supported by the model lorage; leave it out."
            )
        raise ConfigError(f"the model lorage has no argument {name}; leave it out.")


def check_device(device: str | None, platform: str) -> None:
    """Raises ConfigError unless `device` is the platform that JAX runs on, or nothing.

    "cuda:0" passes everywhere: lm-eval's command line gives it when the user gives none.
    """
    names = {"cpu": ("cpu",), "gpu": ("gpu", "cuda"), "tpu": ("tpu", "xla")}.get(platform, ())
    kind = str(device).partition(":")[0]
    if device not in (None, "cuda:0") and kind not in (*names, "auto"):
        raise ConfigError(
            f"device is {device!r}, but JAX runs on {platform}. Leave device out, or set "
            "JAX_PLATFORMS."
        )


def check_generation(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings of generation that are not obeyed and would matter.

    Args:
        settings: of a request; they replace `defaults`.
        defaults: those of the model's folder (`generation_defaults`), which transformers obeys.
    """
    if settings.get("do_sample"):
        raise ConfigError(
            "do_sample=True is not supported; decoding is greedy. Score a task that does not "
            "sample, or pass do_sample=False."
        )
    # Without sampling, a default that says otherwise has no effect.
    found = unobeyed({**defaults, "do_sample": False, **settings})
    only_asked = [name for name in ("eos_token_id", "max_length") if settings.get(name) is not None]
    asked = [f"{name}={settings[name]!r}" for name in only_asked]
    asked += [one for one in found if one.partition("=")[0] in settings]
    own = [one for one in found if one not in asked]
    if not asked and not own:
        return
    what, several = ", ".join(asked), len(asked) + len(own) > 1
    if own:
        folder = f"{', '.join(own)} of the model's generation_config.json or config.json"
        what = f"{what}, and {folder}," if asked else folder
    it = "them" if several else "it"
    length = " The length of an answer is max_gen_toks." if "max_length" in only_asked else ""
    raise ConfigError(
        f"{what} would change the answers and {'are' if several else 'is'} not supported; decoding "
        f"is greedy. {f'Leave {it} out' if asked else f'Remove {it} there'}, or give the value by "
        f"which nothing changes (such as repetition_penalty=1.0, no_repeat_ngram_size=0).{length}"
    )


def as_hf_adapts(model: Model) -> Model:
    """The model without embeddings beyond its tokenizer, which `hf` cuts off below an adapter."""
    size = len(model.tokenizer)
    if size >= model.config.vocab_size:
        return model
    params = model.params | {"embed": model.params["embed"][:size]}
    if "head" in params:
        params["head"] = params["head"][:, :size]
    return model.replace(config=dataclasses.replace(model.config, vocab_size=size), params=params)
