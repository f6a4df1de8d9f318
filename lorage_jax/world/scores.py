"""The built-in world's table: exact match by split, with the prompt, without it, and with cards.

Methods (what the cloud reads | what the answering model reads):

    edge_without_prompt   nothing | the user text
    edge_with_prompt      nothing | prompt and user text
    cloud_with_prompt     nothing | prompt and user text; the cloud itself answers
    multitask_lora        nothing | the user text; one LoRA for all tasks (`baselines`)
    lorage                the prompt | the user text; each row under its own prompt's gates
and the controls of `lorage`, which say whether the prompt made the difference:
    shuffled              a prompt of another task of the same split | as lorage
    random                a random string of as many cloud tokens | as lorage
    mean_gates            (the mean of the split's cards) | as lorage

A result is {"words/paraphrase": {"methods": {"lorage": ...}}}, JSON values; see `world_table`,
which combines the arms, each measured on the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorage_jax.buckets import bucket
from lorage_jax.data.templates import encode_target
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate.controls import mean_card, random_prompts
from lorage_jax.evaluate.gpt4tools import SCORES, Mode, corpus_score, score
from lorage_jax.evaluate.paired import mean_stderr
from lorage_jax.files.journal import Journal
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator
from lorage_jax.infer.generate import generate
from lorage_jax.methods.lora_gen import journaled_cards
from lorage_jax.models.model import Model
from lorage_jax.progress import progress
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world.samples import WorldSample, draw_world, inputs, other_tasks, tokens
from lorage_jax.world.seconds import request_seconds

__all__ = [
    "WorldSample",
    "base_arms",
    "draw_world",
    "generator_arms",
    "lora_arm",
    "request_seconds",
]

GENERATOR_ARMS = ("lorage", "shuffled", "random", "mean_gates")
BATCH_TOKENS = 8192
BATCH_PROMPTS = 16
MARGIN = 4  # tokens an answer may be longer than the longest right one
MODES: tuple[Mode, ...] = ("official", "strict")


def base_arms(
    edge: Model,
    cloud: Model,
    samples: Sequence[WorldSample],
    *,
    batch_tokens: int = BATCH_TOKENS,
    keep_texts: bool = False,
) -> dict[str, Any]:
    """The methods without training, and facts of the samples: what can be guessed, tokens.

    `tokens`: mean tokens that the edge reads a request, without and with the prompt, and their
    ratio (compression).
    """
    models = {
        "edge_without_prompt": (edge, False),
        "edge_with_prompt": (edge, True),
        "cloud_with_prompt": (cloud, True),
    }
    found = {}
    for sample in samples:
        methods = {}
        for name, (model, shown) in models.items():
            texts = answers(
                model, sample, shown=shown, batch_tokens=batch_tokens, label=f"{sample.name} {name}"
            )
            methods[name] = measure(sample, texts, keep_texts=keep_texts)
        without, whole = (
            float(np.mean([len(tokens(edge, text)) for text in inputs(sample, shown)]))
            for shown in (False, True)
        )
        found[sample.name] = {
            "methods": methods,
            "blind_ceiling": world_prompts.blind_ceiling(sample.split, sample.family),
            "tokens": {
                "without_prompt": without,
                "with_prompt": whole,
                "compression": whole / without,
            },
        }
    return found


def generator_arms(
    generator: Generator,
    edge: Model,
    samples: Sequence[WorldSample],
    *,
    seed: int,
    arms: Sequence[str] = GENERATOR_ARMS,
    batch_tokens: int = BATCH_TOKENS,
    keep_texts: bool = False,
) -> dict[str, Any]:
    """`lorage` and its controls. The cloud reads every prompt once, whatever is asked under it."""
    for arm in arms:
        if arm not in GENERATOR_ARMS:
            raise ConfigError(f"there is no arm {arm!r}; expected {', '.join(GENERATOR_ARMS)}.")
    found = {}
    for sample in samples:
        cards, methods = _cards(generator, sample, arms, seed), {}
        for arm in arms:
            texts = answers(
                edge,
                sample,
                cards=cards[arm],
                pool=generator.pool,
                batch_tokens=batch_tokens,
                label=f"{sample.name} {arm}",
            )
            methods[arm] = measure(sample, texts, keep_texts=keep_texts)
            if arm == "lorage":
                read = [card.about["cloud_tokens"] for card in cards[arm]]
                methods[arm]["cloud_tokens"] = float(np.mean(read))  # once a prompt
        found[sample.name] = {"methods": methods}
    return found


def lora_arm(
    model: Model,
    samples: Sequence[WorldSample],
    *,
    batch_tokens: int = BATCH_TOKENS,
    keep_texts: bool = False,
) -> dict[str, Any]:
    """`multitask_lora`: `model` is the edge with the LoRA merged (`baselines.load_lora`)."""
    found = {}
    for sample in samples:
        label = f"{sample.name} multitask_lora"
        texts = answers(model, sample, batch_tokens=batch_tokens, label=label)
        one = measure(sample, texts, keep_texts=keep_texts)
        found[sample.name] = {"methods": {"multitask_lora": one}}
    return found


# Cards


def _cards(
    generator: Generator, sample: WorldSample, arms: Sequence[str], seed: int
) -> dict[str, list[Card]]:
    """Of each arm, the card of every group."""
    donors = other_tasks(sample, seed) if "shuffled" in arms else []  # may be impossible
    journal = Journal()
    own = journaled_cards(generator, sample.prompts, BATCH_PROMPTS, journal)
    cards = {"lorage": own, "shuffled": [own[donor] for donor in donors]}
    cards["mean_gates"] = [mean_card(own)] * len(own)
    if "random" in arms:
        texts = random_prompts(generator.cloud.tokenizer, sample.prompts, seed)
        cards["random"] = journaled_cards(generator, texts, BATCH_PROMPTS, journal)
    return cards


# Answers


def answers(
    model: Model,
    sample: WorldSample,
    *,
    shown: bool = False,
    cards: Sequence[Card] | None = None,
    pool: Any = None,
    batch_tokens: int = BATCH_TOKENS,
    label: str = "answering",
) -> list[str]:
    """The model's greedy answer to every record; `shown`: with the prompt in its context.

    `cards`: of every group. Batches hold about `batch_tokens`, cache included.
    """
    texts = inputs(sample, shown)
    lengths = [len(tokens(model, text)) for text in texts]
    longest = max(len(encode_target(model.tokenizer, record.target)) for record in sample.records)
    given = None
    if cards is not None:
        groups = zip(cards, sample.groups, strict=True)
        given = [card for card, group in groups for _ in group]
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    found = [""] * len(texts)
    with progress(label, len(order)) as advance:
        while order:
            slots = bucket(lengths[order[0]]) + bucket(longest + MARGIN)
            size = max(1, batch_tokens // slots)
            batch, order = order[:size], order[size:]
            # Filled up behind others: no program is compiled for what is left alone.
            fill = size - len(batch) if len(texts) > size else 0
            rows = batch + batch[-1:] * fill
            said = generate(
                model,
                [texts[i] for i in rows],
                max_new_tokens=longest + MARGIN,
                gates=None if given is None else [given[i] for i in rows],
                pool=pool,
            )
            for i, text in zip(batch, said, strict=False):
                found[i] = text
            advance(len(batch))
    return found


# Figures


def measure(
    sample: WorldSample, texts: Sequence[str], *, keep_texts: bool = False
) -> dict[str, Any]:
    """Exact match of the stripped answers, for `tools` also the scores of GPT4Tools.

    Requests of one prompt stand or fall together: a mean is taken over prompts, each the mean of
    its records, and so is its standard error. `by_prompt`: these means.
    """
    if len(texts) != len(sample.records):
        raise DataError(f"{len(texts)} answers came for {len(sample.records)} records.")
    right = [
        float(text.strip() == record.target.strip())
        for text, record in zip(texts, sample.records, strict=True)
    ]
    by_prompt = [float(np.mean(part)) for part in sample.by_group(right)]
    mean, stderr = mean_stderr(by_prompt)
    found: dict[str, Any] = {
        "exact_match": mean,
        "stderr": stderr,
        "prompts": len(sample.groups),
        "records": len(sample.records),
        "by_prompt": by_prompt,
    }
    if sample.family == "tools":
        found["scores"] = {mode: _tool_scores(sample, texts, mode) for mode in MODES}
    if keep_texts:
        found["texts"] = sample.by_group(texts)
    return found


def _tool_scores(sample: WorldSample, texts: Sequence[str], mode: Mode) -> dict[str, Any]:
    pairs = zip(sample.records, texts, strict=True)
    scores = [score(record.target, text, mode) for record, text in pairs]
    return corpus_score([_mean_scores(part) for part in sample.by_group(scores)])


def _mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in SCORES}
