"""Prompts and new tokens of a real model, against transformers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.bench import peers
from lorage_jax.bench.comparison import PEER, Side, Work, compared
from lorage_jax.bench.counting import matmul_macs
from lorage_jax.bench.matmul import matmul_rate
from lorage_jax.bench.programs import prefill_program
from lorage_jax.bench.timing import Bystanders, in_turn
from lorage_jax.compilation import Compilations
from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.hf.load import load_model
from lorage_jax.infer.generate import generate_tokens, padded_prompt
from lorage_jax.models.model import Model

OURS, THEIRS = "generate, compiled", "transformers, forward passes with its cache"
NEEDS = ("torch", "transformers")
SHORTEST = 1e-6  # seconds, where noise exceeds what is measured


def compare_prefill(
    folder: Path, *, batch: int, prompt_tokens: int, repeats: int, dtype: str
) -> dict[str, Any]:
    """Times reading `batch` prompts up to the first new token.

    Prompts are random tokens, the same for both; ours are padded to `padded_tokens`, as in
    `generate`. Seconds are for all prompts together.
    """
    sides = _Sides(folder, dtype, batch, prompt_tokens)
    times = sides.timed(sides.actions(1), repeats)
    macs = matmul_macs(prefill_program(sides.config, prompt_tokens, last=True, dtype=dtype))
    return sides.result(times, Work("tokens", batch * prompt_tokens, batch * macs))


def compare_decode(
    folder: Path, *, batch: int, prompt_tokens: int, new_tokens: int, repeats: int, dtype: str
) -> dict[str, Any]:
    """Times every token after the first, in `batch` rows at once.

    Seconds are for one token in every row: the difference between a call with `new_tokens` new
    tokens and one with a single token, by the number of tokens between. Neither side stops early.

    Raises ConfigError for fewer than 2 new tokens.
    """
    if new_tokens < 2:
        raise ConfigError(
            f"new_tokens is {new_tokens}; expected 2 or more: timing starts at the second token."
        )
    sides = _Sides(folder, dtype, batch, prompt_tokens, new_tokens)
    calls = {
        (name, count): action
        for count in (1, new_tokens)
        for name, action in sides.actions(count).items()
    }
    named = {f"{name} {count}": call for (name, count), call in calls.items()}
    found = sides.timed(named, repeats)
    times = {
        name: [
            max(whole - first, SHORTEST) / (new_tokens - 1)
            for whole, first in zip(found[f"{name} {new_tokens}"], found[f"{name} 1"], strict=True)
        ]
        for name, _ in calls
    }
    macs = _decode_macs(sides.config, prompt_tokens + new_tokens // 2, dtype)
    return sides.result(times, Work("tokens", batch, batch * macs))


class _Sides:
    """A model in both libraries, with the same prompts; the peer is absent if not installed."""

    def __init__(
        self, folder: Path, dtype: str, batch: int, prompt_tokens: int, new_tokens: int = 1
    ):
        self.model = _endless(load_model(folder, dtype))
        self.config, self.dtype, self.others = self.model.config, dtype, Bystanders()
        draw = np.random.default_rng(0)
        self.rows = draw.integers(0, self.config.vocab_size, (batch, prompt_tokens)).tolist()
        with Compilations() as self.compiled:
            ours = self._ours(new_tokens)
        self.missing, self.peer, self.equal = peers.missing(*NEEDS), None, None
        if self.missing is None:
            self.peer = peers.load_torch(folder, dtype)
            theirs = peers.greedy(self.peer, self.rows, new_tokens)
            self.equal = float(np.mean(np.equal(ours, theirs)))
        self.about = {
            "model": folder.resolve().name,
            "dtype": dtype,
            "batch": batch,
            "prompt_tokens": prompt_tokens,
            "padded_tokens": padded_prompt(prompt_tokens),
            **({"new_tokens": new_tokens} if new_tokens > 1 else {}),
        }

    def actions(self, count: int) -> dict[str, Callable[[], Any]]:
        """Calls of both sides that generate `count` tokens in every row."""
        found: dict[str, Callable[[], Any]] = {"lorage": functools.partial(self._ours, count)}
        if self.peer is not None:
            found[PEER] = functools.partial(peers.greedy, self.peer, self.rows, count)
        return found

    def timed(self, actions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
        """`in_turn`, beside which other processes are watched."""
        with self.others:
            return in_turn(actions, repeats)

    def _ours(self, count: int) -> list[list[int]]:
        return generate_tokens(self.model, self.rows, max_new_tokens=count)

    def result(self, times: dict[str, list[float]], work: Work) -> dict[str, Any]:
        ours = Side(OURS, times["lorage"], {"compile_seconds": self.compiled.seconds})
        theirs = None
        if self.peer is not None:
            # Not all, in bfloat16: the two round at other places.
            theirs = Side(THEIRS, times[PEER], {"share_of_equal_tokens": self.equal})
        rate = matmul_rate(self.dtype)
        said = {"missing": self.missing, "others": self.others.share}
        return self.about | compared(ours, theirs, work, rate, **said)


def _endless(model: Model) -> Model:
    """The same model without any token that ends a text."""
    config = dataclasses.replace(model.config, eos_ids=())
    return model.replace(config=config, tokenizer=None)


def _decode_macs(config: ModelConfig, slots: int, dtype: str) -> int:
    """Multiply-accumulates of one more token that attends to `slots` slots."""
    alone = matmul_macs(prefill_program(config, 1, last=True, dtype=dtype))  # attends to itself
    return alone + 2 * config.layers * config.heads * config.head_dim * (slots - 1)
