"""Controls: methods that wrap a method and replace its prompts or cards by uninformative ones.

A control scores as well as its method only if the prompt made no difference.
"""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

from lorage_jax.data.templates import Template
from lorage_jax.errors import ConfigError
from lorage_jax.generator.card import Card
from lorage_jax.methods.method import Conditioning, Method, Placement
from lorage_jax.models.model import Model


class Control(Method, ABC):
    """A method that prepares other conditionings, but places the edge like the wrapped method."""

    method: Method

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Control:
        raise ConfigError(f"{cls.name} wraps another method; it is not loaded by itself.")

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return self.method.place(edge, rows)


@dataclass(frozen=True, eq=False)
class OtherPrompts(Control):
    """The method reads another prompt for each prompt; `facts` are added to those it returns."""

    name: ClassVar[str] = "other_prompts"
    what: ClassVar[str] = "specialised by other prompts"

    method: Method
    others: Sequence[str]
    facts: Sequence[dict[str, Any]] = ()

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        if len(prompts) != len(self.others):
            raise ConfigError(
                f"there are {len(self.others)} other prompts for {len(prompts)} prompts; expected "
                "one for each."
            )
        ready = self.method.prepare(self.others)
        facts = self.facts or [{}] * len(ready)
        return [
            dataclasses.replace(one, facts=one.facts | more)
            for one, more in zip(ready, facts, strict=True)
        ]


class Shuffled(OtherPrompts):
    """The method reads another task's prompt."""

    name: ClassVar[str] = "shuffled"
    what: ClassVar[str] = "specialised by another task's prompt"


class RandomText(OtherPrompts):
    """The method reads random text of as many tokens."""

    name: ClassVar[str] = "random"
    what: ClassVar[str] = "specialised by random text of equal length"


@dataclass(frozen=True, eq=False)
class MeanGates(Control):
    """One card for all prompts: the mean over `over`, or by default over the prompts themselves."""

    name: ClassVar[str] = "mean_gates"
    what: ClassVar[str] = "specialised by the mean gates of many prompts"

    method: Method
    over: Sequence[str] | None = None

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        own = self.method.prepare(prompts if self.over is None else self.over)
        cards = [one.card for one in own if one.card is not None]
        if len(cards) < len(own):
            raise ConfigError(f"{self.method.name} makes no cards, so there are no mean gates.")
        card, facts = mean_card(cards), [{} for _ in prompts]
        if self.over is None:  # the prompt's own facts hold, except the tokens of its card
            facts = [{k: v for k, v in one.facts.items() if k != "cloud_tokens"} for one in own]
        return [Conditioning(card=card, facts=one | {"prompts": len(cards)}) for one in facts]


@dataclass(frozen=True, eq=False)
class Ready(Method):
    """A model that answers in the edge's place, with prompts in its context if `shown`.

    Used for a cloud that answers itself, and for a folder that has its adapter merged.
    """

    name: ClassVar[str] = "ready"
    what: ClassVar[str] = "a model as it is"

    model: Model
    shown: bool = False

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Ready:
        return cls(edge)

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        return [Conditioning(context=prompt if self.shown else None) for prompt in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(self.model)


def mean_card(cards: Sequence[Card]) -> Card:
    """A card with the mean gates of many. Raises ConfigError if they weigh different experts."""
    if len({card.generator for card in cards}) > 1:
        raise ConfigError("each prompt has experts of its own here, so there are no mean gates.")
    mean = np.mean([card.gates for card in cards], axis=0, dtype=np.float64).astype(np.float32)
    about = {"what": f"mean of {len(cards)} prompts", **cards[0].template.to_dict()}
    return dataclasses.replace(cards[0], gates=mean, about=about)


def cloud_length(template: Template, prompt: str) -> int:
    """Number of tokens that the cloud reads for a prompt."""
    return len(template.read(prompt))


def random_prompts(template: Template, prompts: Sequence[str], seed: int) -> list[str]:
    """For each prompt, a random text with about as many cloud tokens."""
    return [
        random_prompt(template, cloud_length(template, prompt), Random(f"random prompt/{seed}/{i}"))
        for i, prompt in enumerate(prompts)
    ]


def random_prompt(template: Template, tokens: int, rng: Random) -> str:
    """Random printable text of about `tokens` tokens (with bos) in the cloud's template.

    It has more if a single word does, and may have a few less if no character adds the last ones.
    """

    def size(text: str) -> int:
        return cloud_length(template, text)

    tokenizer = template.tokenizer
    words = [_word(tokenizer, rng)]
    while (short := tokens - size(" ".join(words))) > 0:
        words += [_word(tokenizer, rng) for _ in range(short // 4 + 1)]
    while len(words) > 1 and size(" ".join(words)) > tokens:
        words.pop()
    text = " ".join(words)
    # Less than a word is missing: add single characters, some of which may not add a token.
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
