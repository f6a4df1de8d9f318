"""Time of a request with and without the system prompt (the latency column of Table 2).

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
from lorage_jax.models.presets import random_model

WAYS = ("with_prompt", "specialized")


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

    Times are medians in milliseconds. `with_prompt` reads instruction and input, `specialized` the
    input alone; a merged model has the base's shapes, so one set of weights serves both. Rows are
    padded to `padded_*` tokens, as in `generate`. The key/value cache has room for the padded row
    and the new tokens. Raises ConfigError for fewer than 2 new tokens.
    """
    if new_tokens < 2:
        raise ConfigError(
            f"new_tokens is {new_tokens}; expected 2 or more: timing starts at the second token."
        )
    lengths = dict(zip(WAYS, (instruction_tokens + input_tokens, input_tokens), strict=True))
    model = random_model(config, dtype)
    actions = {}
    for way, length in lengths.items():
        row = [i % config.vocab_size for i in range(1, length + 1)]
        for part, count in (("prefill", 1), ("request", new_tokens)):
            actions[f"{part}_{way}"] = functools.partial(
                generate_tokens, model, [row], max_new_tokens=count
            )
    times = in_turn(actions, repeats)
    took = {name: statistics.median(each) for name, each in times.items()}
    for way in WAYS:  # pairs of consecutive calls, as the machine's speed drifts
        pairs = zip(times[f"request_{way}"], times[f"prefill_{way}"], strict=True)
        decode = statistics.median(request - prefill for request, prefill in pairs)
        took[f"decode_per_token_{way}"] = decode / (new_tokens - 1)
    parts = ("prefill", "decode_per_token", "request")
    return {
        "layers": config.layers,
        "dtype": dtype,
        "repeats": repeats,
        "new_tokens": new_tokens,
        **{f"tokens_{way}": lengths[way] for way in WAYS},
        **{f"padded_{way}": padded_prompt(lengths[way]) for way in WAYS},
        **{f"{part}_ms_{way}": 1e3 * took[f"{part}_{way}"] for part in parts for way in WAYS},
        **{f"tokens_per_second_{way}": new_tokens / took[f"request_{way}"] for way in WAYS},
        **{
            f"ratio_{part}": took[f"{part}_with_prompt"] / took[f"{part}_specialized"]
            for part in parts
        },
        "largest_spread_within_one": largest_spread(times),
    }
