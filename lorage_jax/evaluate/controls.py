"""Prompts that should not help, for the controls of every score; and prompts cut to size."""

from __future__ import annotations

from random import Random
from typing import Any

from lorage_jax.data.prompts import cloud_prompt, encode
from lorage_jax.generator.generator import Generator


def fit_cloud(generator: Generator, prompt: str) -> tuple[str, bool]:
    """The start of a prompt that the cloud can read whole, and whether that is a cut."""
    room = generator.cloud.config.max_positions - generator.edge.layers
    fitting = prompt
    while fitting.strip():
        length = len(encode(generator.cloud.tokenizer, cloud_prompt(fitting), bos=True))
        if length <= room:
            break
        fitting = fitting[: len(fitting) * room // length]
    return fitting, fitting != prompt


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
