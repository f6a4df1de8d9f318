"""Time of a request with and without the system prompt (latencies of Tables 2 and 13).

The prompt is read anew in every request, or once: then a request starts after a copy of its keys.
LoRAMoE and MixLoRA read it anew, with their experts beside the edge.

It times `generate_tokens`, which users call, on random weights: time does not depend on values.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

from lorage_jax.bench.edge import random_routed
from lorage_jax.bench.routed import ROUTED
from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.infer.generate import generate_tokens, padded_prompt
from lorage_jax.infer.prefixes import read_tokens
from lorage_jax.models.model import Model
from lorage_jax.models.presets import random_model

WAYS = ("with_prompt", "prompt_cached", "specialized")
BESIDE = tuple(method.name for method in ROUTED)  # ways of which only the prefill is timed


def bench_latency(
    config: ModelConfig,
    *,
    input_tokens: int,
    instruction_tokens: int,
    new_tokens: int,
    repeats: int,
    dtype: str,
) -> dict[str, Any]:
    """Times a request of one row, its prefill (up to the first token) and each token after that.

    Times are medians in milliseconds. `with_prompt` reads instruction and input, `prompt_cached`
    the input after the instruction's keys and values, which were read before, and `specialized`
    the input alone; a merged model (LoRA, LoRA-Gen) has the base's shapes, so one set of weights
    serves all. `loramoe` and `mixlora` read what `with_prompt` reads, with all their float32
    experts and routers beside the edge at their default settings, up to the first token. Rows are
    padded to `padded_*` tokens, as in `generate`. The key/value cache has room for the padded row,
    what stands in front of it, and the new tokens.

    Raises ConfigError for fewer than 2 new tokens.
    """
    if new_tokens < 2:
        raise ConfigError(
            f"new_tokens is {new_tokens}; expected 2 or more: timing starts at the second token."
        )
    model = random_model(config, dtype)
    whole = [i % config.vocab_size for i in range(1, instruction_tokens + input_tokens + 1)]
    prefixes = read_tokens(model, [whole[:instruction_tokens]])
    rows = dict(zip(WAYS, (whole, whole, whole[instruction_tokens:]), strict=True))
    actions = {}
    for way, row in rows.items():
        given = {"prefixes": prefixes} if way == "prompt_cached" else {}
        for part, count in (("prefill", 1), ("request", new_tokens)):
            actions[f"{part}_{way}"] = functools.partial(
                generate_tokens, model, [row], max_new_tokens=count, **given
            )
    times = in_turn(actions | _beside(model, whole), repeats)
    took = {name: statistics.median(each) for name, each in times.items()}
    for way in WAYS:  # pairs of consecutive calls, as the machine's speed drifts
        pairs = zip(times[f"request_{way}"], times[f"prefill_{way}"], strict=True)
        decode = statistics.median(request - prefill for request, prefill in pairs)
        took[f"decode_per_token_{way}"] = decode / (new_tokens - 1)
    read = {way: len(row) for way, row in rows.items()} | {"prompt_cached": input_tokens}
    read |= dict.fromkeys(BESIDE, len(whole))
    return {
        "layers": config.layers,
        "dtype": dtype,
        "repeats": repeats,
        "new_tokens": new_tokens,
        **{f"tokens_{way}": count for way, count in read.items()},
        **{f"padded_{way}": padded_prompt(count) for way, count in read.items()},
        **{f"tokens_per_second_{way}": new_tokens / took[f"request_{way}"] for way in WAYS},
        **_by_part(took),
        "largest_spread_within_one": largest_spread(times),
    }


def _beside(model: Model, row: list[int]) -> dict[str, Callable[[], Any]]:
    """Calls that read a row with the experts and routers of each way in BESIDE, by action."""
    return {
        f"prefill_{method.name}": functools.partial(
            generate_tokens,
            model,
            [row],
            max_new_tokens=1,
            pool=random_routed(method, model.config),
        )
        for method in ROUTED
    }


def _by_part(took: dict[str, float]) -> dict[str, float]:
    """Milliseconds of every part, and their ratios to those of the specialised model."""
    parts = ("prefill", "decode_per_token", "request")
    found = {f"{part}_ms_{way}": 1e3 * took[f"{part}_{way}"] for part in parts for way in WAYS}
    for way, ending in (("with_prompt", ""), ("prompt_cached", "_cached")):
        for part in parts:
            ratio = took[f"{part}_{way}"] / took[f"{part}_specialized"]
            found[f"ratio_{part}{ending}"] = ratio
    found |= {f"prefill_ms_{way}": 1e3 * took[f"prefill_{way}"] for way in BESIDE}
    for way in BESIDE:
        found[f"ratio_prefill_{way}"] = took[f"prefill_{way}"] / took["prefill_specialized"]
    return found
