"""Texts to token ids: the tokenizer's own bos, and turns that no text of a user can end."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any

from lorage_jax.errors import DataError, WeightsError

_ENCODING = threading.Lock()  # split_special_tokens is a state of the tokenizer


def raw_ids(tokenizer: Any, text: str, **how: bool) -> list[int]:
    """Token ids of a text as transformers gives them, whatever other threads encode."""
    with _ENCODING:  # verbose=False: no warning about the maximum length; the callers cut
        return tokenizer.encode(text, **how, verbose=False)


def own_bos(tokenizer: Any) -> list[int]:
    """The bos that `tokenizer(text)` puts in front of a text, or nothing."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return []
    bare, full = (raw_ids(tokenizer, "a", add_special_tokens=own) for own in (False, True))
    return [bos] if full[:1] == [bos] and bare[:1] != [bos] else []


def encode(tokenizer: Any, text: str, bos: bool) -> list[int]:
    """Returns the token ids of a text, after the tokenizer's own bos (`own_bos`) if `bos` is set.

    Text that spells a special token ("</s>") is read as plain text, so a user cannot end the turn.

    Raises DataError for text that is not valid Unicode (an unpaired surrogate, a stray byte).
    """
    _check(tokenizer, text)
    ids = raw_ids(tokenizer, text, add_special_tokens=False, split_special_tokens=True)
    return [*own_bos(tokenizer), *ids] if bos else ids


def encode_marked(tokenizer: Any, text: str) -> list[int]:
    """Returns the token ids of a text in which special tokens are written out, as transformers.

    The tokenizer's own bos stands in front, unless the text begins with it already, as most
    rendered chat templates do.

    Raises DataError for text that is not valid Unicode.
    """
    _check(tokenizer, text)
    bos = tokenizer.bos_token
    written = bool(bos) and text.startswith(bos)
    return raw_ids(tokenizer, text, add_special_tokens=not written)


def check_tokenizer(tokenizer: Any, what: Any = "this model") -> None:
    """Raises WeightsError if there is no tokenizer; `what`: the model or its folder, in words."""
    if tokenizer is None:
        raise WeightsError(
            f"{what} has no tokenizer files, so it takes token ids only, and no text. Put "
            "tokenizer.json and tokenizer_config.json next to config.json."
        )


def _check(tokenizer: Any, text: str) -> None:
    check_tokenizer(tokenizer)
    _check_unicode(text)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"character {error.start} of the text is not valid Unicode.") from None


class TurnEncoder:
    """Encodes rendered turns: control tokens of the template count, those in contents are text.

    `hide` replaces control tokens in a content before it is rendered; `__call__` encodes the
    rendered text. Without anything hidden, ids are exactly the tokenizer's own.

    Args:
        tokenizer: a transformers tokenizer.
        frame: rendered turns without contents; the added tokens in it are control tokens, besides
            all special ones.
    """

    def __init__(self, tokenizer: Any, frame: str):
        self._tokenizer = tokenizer
        self._added = {
            token.content: (id, token)
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.content and (token.special or token.content in frame)
        }
        self._controls = _any_of(self._added)
        # Private-use characters: no tokenizer has them, and templates leave them alone.
        self._hidden = {text: f"\uf8f0{i}\uf8f1" for i, text in enumerate(self._added)}
        self._shown = {mark: text for text, mark in self._hidden.items()}
        self._marks = _any_of(self._shown)

    def hide(self, content: str) -> str:
        """The content with its control tokens replaced by marks."""
        if self._marks.search(content):
            raise DataError("the text holds characters that are reserved (U+F8F0, U+F8F1).")
        return self._controls.sub(lambda found: self._hidden[found[0]], content)

    def control(self, text: str) -> re.Match[str] | None:
        """The first control token in a text."""
        return self._controls.search(text)

    def id(self, control: str) -> int:
        """The id of a control token."""
        return self._added[control][0]

    def __call__(self, text: str) -> list[int]:
        """Token ids of rendered turns, without a bos in front. Raises DataError as `encode`."""
        _check_unicode(text)
        if not self._marks.search(text):
            return raw_ids(self._tokenizer, text, add_special_tokens=False)
        ids, at = [], 0
        for found in self._controls.finditer(text):
            ids += self._run(text, at, found.start())
            ids.append(self._added[found[0]][0])
            at = found.end()
        return ids + self._run(text, at, len(text))

    def _run(self, text: str, begin: int, end: int) -> list[int]:
        """Ids of a run of text between two control tokens, which may take white space from it."""
        run = text[begin:end]
        before = self._at_end(text[:begin])
        if before is not None and before.rstrip:
            run = run.lstrip()
        after = self._controls.match(text, end)
        if after is not None and self._added[after[0]][1].lstrip:
            run = run.rstrip()
        ids, part = [], ""
        for piece in self._marks.split(run):
            part += self._shown.get(piece, piece)
        at = 0
        # An added token that is not special is found in any text: it is cut in two.
        plain = [text for text, (_, token) in self._added.items() if not token.special]
        for found in _any_of(plain).finditer(part) if plain else ():
            ids += self._plain(part[at : found.start() + 1])
            at = found.start() + 1
        return ids + self._plain(part[at:])

    def _at_end(self, text: str) -> Any:
        return next((token for c, (_, token) in self._added.items() if text.endswith(c)), None)

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        return raw_ids(self._tokenizer, text, add_special_tokens=False, split_special_tokens=True)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of these texts, with the longest first, as one group."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})" if ordered else "(?!)()")
