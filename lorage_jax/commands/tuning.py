"""`lorage specialize --samples`: training of a prompt's LoRA on solved requests.

Apart from `specialize`, whose other uses import nothing of training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from lorage_jax.commands.options import Specialize
from lorage_jax.data.solved import read_solved
from lorage_jax.generator.deploy import Reading, read_prompt
from lorage_jax.generator.generator import Generator
from lorage_jax.hf.load import load_model
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.tuned_cards import TunedCards, TuningSettings


@dataclass(frozen=True)
class Learning:
    """Solved requests, (user, target) pairs, and how a prompt's LoRA is trained on them."""

    solved: tuple[tuple[str, str], ...]
    settings: TuningSettings


def read_learning(options: Specialize, samples: Path, prompt: str) -> Learning:
    """The prompt's file of `--samples` and how to learn from it.

    Raises ConfigError and DataError.
    """
    given = {"steps": options.tuning_steps, "learning_rate": options.tuning_rate}
    given = {name: value for name, value in given.items() if value is not None}
    return Learning(tuple(read_solved(samples, prompt)), TuningSettings(**given))


def learnt(
    generator: Generator, text: str, edge: Path, learning: Learning, reading: Reading | None
) -> Reading:
    """The reading of the prompt `text`, with its LoRA trained on the samples.

    `edge` is the folder of the generator's edge.
    """
    reading, began = reading or read_prompt(generator, text), time.monotonic()
    model = generator.speaking(load_model(edge))
    method = TunedCards(model, LoraGen(generator), tuning=learning.settings)
    card = method.given({text: learning.solved}).fit(text, reading.card)
    return Reading(card, reading.seconds + time.monotonic() - began)
