"""Time of a request to a specialised edge, against the edge with the prompt in its context."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.buckets import bucket
from lorage_jax.data.records import Record
from lorage_jax.data.templates import edge_prompt, edge_prompt_with_system, encode_target
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.merge import merge
from lorage_jax.infer.generate import generate
from lorage_jax.models.model import Model
from lorage_jax.world.samples import WorldSample, tokens


def request_seconds(
    edge: Model,
    special: Generator | Model,
    samples: Sequence[WorldSample],
    *,
    rows: int = 32,
    repeats: int = 7,
) -> dict[str, Any]:
    """Seconds of a request by `generate`: the edge with the prompt against the merged edge without.

    Per sample, for the prompt of median length: `batch`, `rows` requests at once, seconds divided
    by `rows`; `single`, one request. Medians of `repeats` calls after one that compiles, the ways
    taking turns. All of them write the same number of tokens, as many as a mean target has: no eos
    ends them. Reading the prompt by the cloud and the merge, once a prompt, are not in it.
    `special`: a generator, or the edge with an adapter merged.
    """
    found = {}
    for sample in samples:
        group = _median_group(edge, sample)
        model = special
        if isinstance(special, Generator):
            model = merge(edge, special.pool, specialize(special, group[0].system))
        asked = [group[i % len(group)] for i in range(rows)]
        texts = {
            "with_prompt": [edge_prompt_with_system(r.system, r.user) for r in asked],
            "specialized": [edge_prompt(r.user) for r in asked],
        }
        models = {"with_prompt": endless(edge), "specialized": endless(model)}
        targets = [len(encode_target(edge.tokenizer, r.target)) for r in sample.records]
        new = round(statistics.fmean(targets))
        counts = {"batch": rows, "single": 1}
        times = in_turn(
            {
                f"{kind}_{way}": partial(
                    generate, models[way], texts[way][:count], max_new_tokens=new
                )
                for kind, count in counts.items()
                for way in texts
            },
            repeats,
        )
        took = {name: statistics.median(each) for name, each in times.items()}
        lengths = {way: max(len(tokens(edge, text)) for text in texts[way]) for way in texts}
        found[sample.name] = {
            kind: {
                **{way: took[f"{kind}_{way}"] / count for way in texts},
                "ratio": took[f"{kind}_with_prompt"] / took[f"{kind}_specialized"],
            }
            for kind, count in counts.items()
        } | {
            "rows": rows,
            "new_tokens": new,
            **{f"tokens_{way}": length for way, length in lengths.items()},
            **{f"padded_{way}": bucket(length) for way, length in lengths.items()},
            "repeats": repeats,
            "largest_spread_within_one": largest_spread(times),
        }
    return found


def endless(model: Model) -> Model:
    """The model without an eos: rows run to the last token that is asked for."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.eos_token = None
    return model.replace(config=dataclasses.replace(model.config, eos_ids=()), tokenizer=tokenizer)


def _median_group(edge: Model, sample: WorldSample) -> list[Record]:
    def length(group: list[Record]) -> int:
        return len(tokens(edge, edge_prompt_with_system(group[0].system, group[0].user)))

    return sorted(sample.groups, key=length)[len(sample.groups) // 2]
