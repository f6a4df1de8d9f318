"""Time of a request with and without the system prompt (the latency column of Table 2).

The prompt is read anew in every request, or once: then a request starts behind a copy of its keys.

It times `generate_tokens`, which users call, on random weights: time does not depend on values.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.infer.generate import generate_tokens, padded_prompt
from lorage_jax.infer.prefixes import read_tokens
from lorage_jax.models.presets import random_model

WAYS = ("with_prompt", "prompt_cached", "specialized")


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
    the input behind the instruction's keys and values, which were read before, and `specialized`
    the input alone; a merged model has the base's shapes, so one set of weights serves all. Rows
    are padded to `padded_*` tokens, as in `generate`. The key/value cache has room for the padded
    row, what stands in front of it, and the new tokens.

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
    times = in_turn(actions, repeats)
    took = {name: statistics.median(each) for name, each in times.items()}
    for way in WAYS:  # pairs of consecutive calls, as the machine's speed drifts
        pairs = zip(times[f"request_{way}"], times[f"prefill_{way}"], strict=True)
        decode = statistics.median(request - prefill for request, prefill in pairs)
        took[f"decode_per_token_{way}"] = decode / (new_tokens - 1)
    read = {way: len(row) for way, row in rows.items()} | {"prompt_cached": input_tokens}
    return {
        "layers": config.layers,
        "dtype": dtype,
        "repeats": repeats,
        "new_tokens": new_tokens,
        **{f"tokens_{way}": read[way] for way in WAYS},
        **{f"padded_{way}": padded_prompt(read[way]) for way in WAYS},
        **{f"tokens_per_second_{way}": new_tokens / took[f"request_{way}"] for way in WAYS},
        **_by_part(took),
        "largest_spread_within_one": largest_spread(times),
    }


def _by_part(took: dict[str, float]) -> dict[str, float]:
    """Milliseconds of every part, and their ratios to those of the specialised model."""
    parts = ("prefill", "decode_per_token", "request")
    found = {f"{part}_ms_{way}": 1e3 * took[f"{part}_{way}"] for part in parts for way in WAYS}
    for way, ending in (("with_prompt", ""), ("prompt_cached", "_cached")):
        for part in parts:
            ratio = took[f"{part}_{way}"] / took[f"{part}_specialized"]
            found[f"ratio_{part}{ending}"] = ratio
    return found
