"""The cards of an evaluation: those of the prompts, and those that should not help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from lorage_jax.data.tasks import TASKS
from lorage_jax.data.templates import cloud_prompt, encode
from lorage_jax.evaluate.protocol import SystemPrompt
from lorage_jax.files.journal import Journal
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator
from lorage_jax.methods.lora_gen import journaled_cards

# Tasks whose prompts say nearly the same: one is no control of another.
KINDS = dict.fromkeys(("arc_challenge", "arc_easy", "openbookqa"), "science questions")
BATCH_PROMPTS = 8
FEWEST_TASKS = 4  # whose mean gates are the mean of many prompts


@dataclass(frozen=True)
class Read:
    """A card, and what the cloud was given for it: tokens, samples, whose prompt."""

    card: Card
    facts: dict[str, Any]


def read_prompts(
    generator: Generator,
    prompts: dict[str, SystemPrompt],
    prompt_of: Callable[[str], SystemPrompt],
    *,
    seed: int,
    controls: bool,
    journal: Journal,
) -> dict[str, dict[str, Read]]:
    """By arm and task, what the edge is specialised by. `prompt_of` makes those not in `prompts`.

    `mean_gates`: over the run's own prompts, or of all described tasks when there are few.
    """

    def read(texts: dict[str, SystemPrompt], **facts: dict[str, Any]) -> dict[str, Read]:
        cards = journaled_cards(generator, [p.text for p in texts.values()], BATCH_PROMPTS, journal)
        return {
            name: Read(
                card,
                {
                    "cloud_tokens": card.about["cloud_tokens"],
                    "cloud_shots": texts[name].shots,
                    **{key: values[name] for key, values in facts.items()},
                },
            )
            for name, card in zip(texts, cards, strict=True)
        }

    found = {"specialized": read(prompts)}
    if not controls:
        return found
    others = {name: partner(name, list(prompts)) for name in prompts}
    shuffled = {
        name: prompts[other] if other in prompts else prompt_of(other)
        for name, other in others.items()
    }
    rng = Random(f"random/{seed}")
    noise = {
        name: SystemPrompt(
            random_prompt(generator.cloud.tokenizer, one.facts["cloud_tokens"], rng), 0
        )
        for name, one in found["specialized"].items()
    }
    own = [one.card for one in found["specialized"].values()]
    if len(own) < FEWEST_TASKS:
        texts = [text for task in TASKS.values() for text in task.descriptions]
        own = journaled_cards(generator, texts, BATCH_PROMPTS, journal)
    blind = mean_card(own)
    return found | {
        "shuffled": read(shuffled, prompt_of=others),
        "random": read(noise),
        "mean_gates": dict.fromkeys(prompts, Read(blind, {"prompts": len(own)})),
    }


def partner(name: str, names: Sequence[str]) -> str:
    """The task whose prompt is the control of `name`: of another kind, if possible of this run."""

    def behind(order: Sequence[str]) -> list[str]:
        at = list(order).index(name)
        turned = [*order[at + 1 :], *order[:at]]
        return [other for other in turned if KINDS.get(other, other) != KINDS.get(name, name)]

    return (behind(names) or behind(list(TASKS)))[0]


def mean_card(cards: Sequence[Card]) -> Card:
    """The mean gates of many prompts: what they have in common."""
    mean = np.mean([card.gates for card in cards], axis=0, dtype=np.float64).astype(np.float32)
    about = {"what": f"mean of {len(cards)} prompts"}
    return dataclasses.replace(cards[0], gates=mean, about=about)


def random_prompts(tokenizer: Any, prompts: Sequence[str], seed: int) -> list[str]:
    """For each prompt a random string of as many tokens of the cloud."""
    lengths = [len(encode(tokenizer, cloud_prompt(prompt), bos=True)) for prompt in prompts]
    return [
        random_prompt(tokenizer, length, Random(f"random prompt/{seed}/{i}"))
        for i, length in enumerate(lengths)
    ]


def random_prompt(tokenizer: Any, tokens: int, rng: Random) -> str:
    """Random printable text of which `cloud_prompt` makes `tokens` tokens (bos included)."""

    def size(text: str) -> int:
        return len(encode(tokenizer, cloud_prompt(text), bos=True))

    words = [_word(tokenizer, rng)]
    while (short := tokens - size(" ".join(words))) > 0:
        words += [_word(tokenizer, rng) for _ in range(short // 4 + 1)]
    while len(words) > 1 and size(" ".join(words)) > tokens:
        words.pop()
    text = " ".join(words)
    # What is missing now is less than a word: letter by letter, of which one may add no token.
    for _ in range(100):
        if size(text) == tokens:
            break
        longer = text + rng.choice("bcdfghjklmnpqrstvwxz0123456789")
        text = longer if size(longer) <= tokens else text
    return text


def _word(tokenizer: Any, rng: Random) -> str:
    special = set(tokenizer.all_special_ids)
    while True:
        number = rng.randrange(len(tokenizer))
        word = tokenizer.decode([number], clean_up_tokenization_spaces=False).strip()
        if number not in special and word and word.isascii() and word.isprintable():
            return word
