"""Token ids to text while it grows: differences of full decodings, stop strings, streaming.

A tokenizer decodes a token by its neighbours (a leading space, the bytes of one character), so
no token is ever decoded alone: text is what prompt and continuation read together, less what the
prompt reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lorage_jax.errors import ConfigError

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character (yet) decode to


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """`stop` as a tuple. ConfigError for an empty string, which every text holds."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in stops:
        if not isinstance(one, str) or not one:
            raise ConfigError(f"stop holds {one!r}; expected strings that are not empty.")
    return stops


def continuation(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` as it reads behind `prompt`, special tokens left out."""
    before, both = _decode(tokenizer, prompt), _decode(tokenizer, [*prompt, *ids])
    if both.startswith(before):
        return both[len(before) :]
    # Byte tokens behind a prompt that ends in byte tokens can spoil its last character.
    return _decode(tokenizer, ids)


def settled(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The start of `continuation` that no token to come can change."""
    end = len(ids)
    # SentencePiece decodes a run of byte tokens as a whole: one bad byte spoils all of it.
    while end and BYTE_TOKEN.fullmatch(str(tokenizer.convert_ids_to_tokens(int(ids[end - 1])))):
        end -= 1
    return continuation(tokenizer, prompt, ids[:end]).rstrip(UNKNOWN)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` before the stop string that is complete first (of several, the longest); found?

    Completion, not start, decides: so the result does not depend on when one looks.
    """
    found = [(at + len(s), at) for s in stops for at in [text.find(s)] if at >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


def may_be_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    lengths = [n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])]
    return max(lengths, default=0)


class GrowingTexts:
    """The texts of a batch: cut at stop strings, handed to `stream(row, piece)` as they settle."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        stream: Callable[[int, str], Any] | None,
    ):
        self.tokenizer, self.prompts, self.stops, self.stream = tokenizer, prompts, stops, stream
        self.texts = [""] * len(prompts)  # final where `ended`; else what has been streamed
        self.ended = [False] * len(prompts)

    def update(self, rows: Sequence[Sequence[int]], ended: Sequence[bool]) -> list[bool]:
        """Takes all tokens so far; returns which rows need no more of them."""
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
