"""Decodes token ids to text during generation, with stop strings and streaming.

How a token decodes depends on its neighbours (leading spaces, the bytes of one character), so none
is decoded alone: the text of a continuation is the decoding of prompt and continuation together,
minus the decoding of the prompt.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lorage_jax.errors import ConfigError
from lorage_jax.fields import require_kind

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
MARK = chr(0x10F000)  # the first of the private-use characters that stand for special tokens
KNOWN = 8  # tokens that show how the next ones read; a character has at most four bytes
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # the decoding of bytes that do not form a character (yet)


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns `stop` as a tuple. Raises ConfigError for an empty string, found in every text."""
    if stop is None:
        return ()
    require_kind(stop, Iterable, "stop", "a text before which to stop, or a list of texts")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in stops:
        if not isinstance(one, str) or not one:
            raise ConfigError(f"stop contains {one!r}; expected non-empty strings.")
    return stops


@dataclass(frozen=True)
class Stops:
    """Stop strings of one tokenizer.

    A text is decoded without special tokens. If any of them occurs in a stop string, they are put
    back as marks: single characters that no text has.

    Attributes:
        ids: special tokens that are a stop string by themselves.
        texts: the stop strings, as written and with marks.
        marks: the mark of each special token, by id; empty if each stop string is only text or
            only one special token.
    """

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    marks: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, stop: str | Sequence[str] | None) -> Stops:
        """Reads stop strings. Raises ConfigError for an empty one, found in every text."""
        texts = stop_strings(stop)
        if not texts:
            return cls()
        special = _special_tokens(tokenizer)
        ids = tuple(special[text] for text in texts if text in special)
        mixed = [text for text in texts if text not in special]
        found = [one for one in special if any(one in text for text in mixed)]
        if not found:
            return cls(ids, texts)
        marks = dict.fromkeys(special, MARK)  # no stop string goes on after any other
        marks |= {text: chr(ord(MARK) + number) for number, text in enumerate(found, start=1)}
        parts = re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))))
        marked = [parts.sub(lambda part: marks[part[0]], text) for text in mixed]
        by_id = {special[text]: mark for text, mark in marks.items()}
        return cls(ids, tuple(dict.fromkeys([*texts, *marked])), by_id)

    def unmarked(self, text: str) -> str:
        """The text without marks."""
        return text.translate({ord(mark): None for mark in self.marks.values()})


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """The id of each token that is left out of a decoded text."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    special |= {token.content: id for id, token in added if token.special}
    return {text: id for text, id in special.items() if text}


def continuation(
    tokenizer: Any,
    prompt: Sequence[int],
    ids: Sequence[int],
    marks: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """Decodes `ids` as they read after `prompt`, without special tokens, but with their `marks`."""
    text = marked = ""
    for at, one in enumerate(ids):
        if int(one) in marks:
            longer = _continuation(tokenizer, prompt, ids[:at])
            marked += longer[len(text) :] + marks[int(one)]
            text = longer
    return marked + _continuation(tokenizer, prompt, ids)[len(text) :]


def _continuation(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    before, both = _decode(tokenizer, prompt), _decode(tokenizer, [*prompt, *ids])
    if both.startswith(before):
        return both[len(before) :]
    # If the prompt ends in byte tokens, byte tokens after it can corrupt its last character.
    return _decode(tokenizer, ids)


def before_stops(tokenizer: Any, ids: Sequence[int], stops: Sequence[str]) -> tuple[str, bool]:
    """The text of an answer before its first stop string, by the rule of lm-eval's `hf` model.

    The answer ends with the token that completes a stop string, where special tokens count as text;
    then special tokens are left out, and stop strings that are still there are cut off.

    Returns (text, whether a stop string was found).
    """
    ids = [int(one) for one in ids]

    def stopped(count: int) -> bool:
        text = tokenizer.decode(ids[:count], skip_special_tokens=False)
        return any(stop in text for stop in stops)

    kept = ids[: bisect.bisect_left(range(len(ids)), True, key=stopped)]
    whole = text = tokenizer.decode(kept, skip_special_tokens=True)
    for stop in stops:
        text = text.split(stop)[0]
    return text, text != whole or stopped(len(ids))


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


class _Settled:
    """The beginning of one row's `continuation` that no later token can change, as it grows.

    Only tokens since the last place that is settled are decoded, after some that show how they
    read there.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], marks: Mapping[int, str]):
        self._tokenizer, self._prompt, self._marks = tokenizer, prompt, marks
        self._open = (UNKNOWN, *set(marks.values()))
        self._count, self._text = 0, ""  # tokens that are settled, and how they read

    def __call__(self, ids: Sequence[int]) -> str:
        """The settled text of all tokens so far."""
        end = len(ids)
        # SentencePiece decodes a run of byte tokens as a whole: one bad byte corrupts all of it.
        while end > self._count and self._is_byte(ids[end - 1]):
            end -= 1
        if end == self._count:
            return self._text
        added = self._added(ids, end) if self._count else None
        if added is None:
            text = continuation(self._tokenizer, self._prompt, ids[:end], self._marks)
        else:
            text = self._text + added
        # A special token can stand between two bytes of a character, and reads as nothing.
        if text and not text.endswith(self._open) and _decode(self._tokenizer, ids[end - 1 : end]):
            self._count, self._text = end, text
        return text.rstrip(UNKNOWN)

    def _is_byte(self, one: int) -> bool:
        return bool(BYTE_TOKEN.fullmatch(str(self._tokenizer.convert_ids_to_tokens(int(one)))))

    def _added(self, ids: Sequence[int], end: int) -> str | None:
        """The text that tokens up to `end` add to the settled one; None if they change that."""
        known = ids[max(0, self._count - KNOWN) : self._count]
        before = _decode(self._tokenizer, known)
        both = _decode(self._tokenizer, [*known, *ids[self._count : end]])
        if not before or not both.startswith(before):
            return None
        return continuation(self._tokenizer, known, ids[self._count : end], self._marks)


class GrowingTexts:
    """The growing texts of a batch, cut at stop strings and streamed as soon as they are final."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        stops: Stops,
        stream: Callable[[int, str], Any] | None,
    ):
        self.tokenizer, self.prompts, self.stops, self.stream = tokenizer, prompts, stops, stream
        self._settled = [_Settled(tokenizer, prompt, stops.marks) for prompt in prompts]
        self._marked = [""] * len(prompts)  # complete where `ended`, else the part that is final
        self.ended = [False] * len(prompts)

    @property
    def texts(self) -> list[str]:
        """The text of each row: complete where it has ended, else the part that is final."""
        return [self.stops.unmarked(text) for text in self._marked]

    def update(self, rows: Sequence[Sequence[int]], ended: Sequence[bool]) -> list[bool]:
        """Takes all tokens so far and returns a flag per row that needs no more."""
        for i, (prompt, ids) in enumerate(zip(self.prompts, rows, strict=True)):
            if self.ended[i]:
                continue
            if ended[i]:
                marked = continuation(self.tokenizer, prompt, ids, self.stops.marks)
            else:
                marked = self._settled[i](ids)
            text, stopped = cut(marked, self.stops.texts)
            self.ended[i] = stopped or ended[i]
            if not self.ended[i]:
                text = text[: len(text) - may_be_stop(text, self.stops.texts)]
            piece = self.stops.unmarked(text[len(self._marked[i]) :])
            self._marked[i] = text
            if piece and self.stream is not None:
                self.stream(i, piece)
        return list(self.ended)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    ids = [int(i) for i in ids]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def spelling(tokenizer: Any) -> str:
    """The tokenizer's whole definition as one string, to distinguish tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return repr(tokenizer) if backend is None else backend.to_str()
