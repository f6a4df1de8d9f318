"""Seconds per request of a specialised edge, and of the edge with the prompt in its context."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.data.records import Record
from lorage_jax.data.templates import Message, question
from lorage_jax.evaluate.answers import encoded, turns
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.merge import merge
from lorage_jax.infer.generate import generate, generate_tokens, padded_prompt
from lorage_jax.methods.method import Method
from lorage_jax.models.model import Model
from lorage_jax.world.samples import WorldSample

ROWS, REPEATS = 32, 5  # requests at once, and turns of each method


def request_seconds(
    edge: Model,
    special: Generator | Model,
    samples: Sequence[WorldSample],
    *,
    rows: int = 32,
    repeats: int = 7,
) -> dict[str, Any]:
    """Seconds per request by `generate`, with the prompt in context and specialised without it.

    Per sample, for the prompt of median length: `batch`, `rows` requests at once, seconds divided
    by `rows`; `single`, one request. Medians of `repeats` calls after one that compiles, the arms
    taking turns. All of them write the same number of tokens, as many as a mean target has: no eos
    ends them. The cloud's reading of the prompt and the merge, once per prompt, are not included.
    `special`: a generator, or the edge with an adapter merged.
    """
    if isinstance(special, Generator):
        edge = special.speaking(edge)
    found = {}
    for sample in samples:
        group = median_group(edge, sample)
        model = _specialised(edge, special, group[0].system)
        asked = [group[i % len(group)] for i in range(rows)]
        texts = {
            "in_context": [question(r.user, r.system) for r in asked],
            "lora_gen": [question(r.user) for r in asked],
        }
        models = {"in_context": endless(edge), "lora_gen": endless(model)}
        new = new_tokens(edge, sample)
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
        lengths = {way: max(_tokens(edge, text) for text in texts[way]) for way in texts}
        found[sample.name] = {
            kind: {
                **{way: took[f"{kind}_{way}"] / count for way in texts},
                "ratio": took[f"{kind}_in_context"] / took[f"{kind}_lora_gen"],
            }
            for kind, count in counts.items()
        } | {
            "rows": rows,
            "new_tokens": new,
            **{f"tokens_{way}": length for way, length in lengths.items()},
            **{f"padded_{way}": padded_prompt(length) for way, length in lengths.items()},
            "repeats": repeats,
            "largest_spread_within_one": largest_spread(times),
        }
    return found


def method_seconds(
    methods: Mapping[str, Method],
    edge: Model,
    sample: WorldSample,
) -> dict[str, float]:
    """Seconds per request of each method, ROWS requests of one prompt at once, taking turns.

    As in `request_seconds`: for the prompt of median length, without preparing and placing it, and
    with as many new tokens as a mean target has.
    """
    group = median_group(edge, sample)
    asked = [group[i % len(group)] for i in range(ROWS)]
    new = new_tokens(edge, sample)
    times = in_turn(
        {name: _request(method, edge, asked, new) for name, method in methods.items()}, REPEATS
    )
    return {name: statistics.median(each) / ROWS for name, each in times.items()}


def new_tokens(edge: Model, sample: WorldSample) -> int:
    """The tokens that a request writes: as many as a mean target has."""
    return round(statistics.fmean(len(edge.template.answer(r.target)) for r in sample.records))


def _request(
    method: Method, edge: Model, asked: Sequence[Record], new: int
) -> Callable[[], list[list[int]]]:
    """Answers all of `asked`, which have one prompt, as the method places the edge for it."""
    (ready,) = method.prepare([asked[0].system])
    placement = method.place(edge, [ready] * len(asked))
    return partial(
        generate_tokens,
        endless(placement.model),
        encoded(placement.model, [turns(record.user, ready) for record in asked]),
        max_new_tokens=new,
        gates=placement.cards,
        pool=placement.pool,
        prefixes=placement.prefix_rows(len(asked)),
    )


def _specialised(edge: Model, special: Generator | Model, prompt: str) -> Model:
    if isinstance(special, Generator):
        return merge(edge, special.pool, specialize(special, prompt))
    return special


def endless(model: Model) -> Model:
    """The model without an eos: rows run to the last token requested."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.eos_token = None
    return model.replace(config=dataclasses.replace(model.config, eos_ids=()), tokenizer=tokenizer)


def median_group(edge: Model, sample: WorldSample) -> list[Record]:
    """The requests of the prompt of median length."""

    def length(group: list[Record]) -> int:
        return _tokens(edge, question(group[0].user, group[0].system))

    return sorted(sample.groups, key=length)[len(sample.groups) // 2]


def _tokens(model: Model, asked: Sequence[Message]) -> int:
    return len(model.template.ids(asked))
