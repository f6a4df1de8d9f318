"""Decodes token ids to text during generation, with stop strings and streaming.

How a token decodes depends on its neighbours (leading spaces, the bytes of one character), so none
is decoded alone: the text of a continuation is the decoding of prompt and continuation together,
minus the decoding of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lorage_jax.errors import ConfigError

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # the decoding of bytes that do not form a character (yet)


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns `stop` as a tuple. Raises ConfigError for an empty string, found in every text."""
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in stops:
        if not isinstance(one, str) or not one:
            raise ConfigError(f"stop contains {one!r}; expected non-empty strings.")
    return stops


def stop_ids(tokenizer: Any, stops: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """The ids of stop strings that are special tokens, and the other stop strings."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    found = [special[one] for one in stops if one in special]
    return found, tuple(one for one in stops if one not in special)


def continuation(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Decodes `ids` as they read after `prompt`, without special tokens."""
    before, both = _decode(tokenizer, prompt), _decode(tokenizer, [*prompt, *ids])
    if both.startswith(before):
        return both[len(before) :]
    # If the prompt ends in byte tokens, byte tokens after it can corrupt its last character.
    return _decode(tokenizer, ids)


def settled(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The beginning of `continuation` that no later token can change."""
    end = len(ids)
    # SentencePiece decodes a run of byte tokens as a whole: one bad byte corrupts all of it.
    while end and BYTE_TOKEN.fullmatch(str(tokenizer.convert_ids_to_tokens(int(ids[end - 1])))):
        end -= 1
    return continuation(tokenizer, prompt, ids[:end]).rstrip(UNKNOWN)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Cuts `text` before the stop string that ends first, and returns whether there is one.

    If several end at the same place, the longest counts. Comparing ends rather than starts makes
    the result independent of how the text arrives in chunks.
    """
    found = [(at + len(s), at) for s in stops for at in [text.find(s)] if at >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


def may_be_stop(text: str, stops: Sequence[str]) -> int:
    """The number of characters at the end of `text` that could begin a stop string."""
    lengths = [n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])]
    return max(lengths, default=0)


class GrowingTexts:
    """The growing texts of a batch, cut at stop strings and streamed as soon as they are final."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        stream: Callable[[int, str], Any] | None,
    ):
        self.tokenizer, self.prompts, self.stops, self.stream = tokenizer, prompts, stops, stream
        self.texts = [""] * len(prompts)  # complete where `ended`, else the part that is final
        self.ended = [False] * len(prompts)

    def update(self, rows: Sequence[Sequence[int]], ended: Sequence[bool]) -> list[bool]:
        """Takes all tokens so far and returns a flag per row that needs no more."""
        for i, (prompt, ids) in enumerate(zip(self.prompts, rows, strict=True)):
            if self.ended[i]:
                continue
            read = continuation if ended[i] else settled
            text, stopped = cut(read(self.tokenizer, prompt, ids), self.stops)
            self.ended[i] = stopped or ended[i]
            if not self.ended[i]:
                text = text[: len(text) - may_be_stop(text, self.stops)]
            piece, self.texts[i] = text[len(self.texts[i]) :], text
            if piece and self.stream is not None:
                self.stream(i, piece)
        return list(self.ended)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    ids = [int(i) for i in ids]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
