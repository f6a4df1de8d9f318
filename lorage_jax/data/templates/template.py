"""A template: how turns become the tokens of one tokenizer.

`TemplateKind` says which, for any tokenizer; it is what generators, cards and folders record.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from lorage_jax.data.templates.tokens import check_tokenizer, own_bos, raw_ids
from lorage_jax.errors import DataError

NAMES = ("plain", "chat")
VERSIONS = (1, 2)
PROBE = "Say 120 twice:\n - this, Ça!"

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant", "content": str}


@dataclass(frozen=True)
class Conversation:
    """Token ids of a chat; `loss_mask` is True at the answers and the ends of their turns."""

    tokens: list[int]
    loss_mask: list[bool]


class Template(ABC):
    """The turns of one tokenizer.

    Attributes:
        name: `plain` or `chat`.
        version: 1 puts the tokenizer's bos in front of every text, 2 only where `tokenizer(text)`
            does.
    """

    name: ClassVar[str]

    def __init__(self, tokenizer: Any, version: int):
        self.tokenizer, self.version = tokenizer, version

    @property
    @abstractmethod
    def ends(self) -> tuple[int, ...]:
        """Ids that end the assistant's turn."""

    @abstractmethod
    def text(self, messages: Sequence[Message], cue: bool = True) -> str:
        """The text of messages and, with `cue`, of the cue to answer. No bos, unless it is written
        out by the model's own template.
        """

    @abstractmethod
    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of messages and the cue to answer, as the edge reads them."""

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Token ids of what `text` returned.

        Control tokens inside a content are no longer distinguished from the template's own.
        """

    @abstractmethod
    def read(self, system: str) -> list[int]:
        """Token ids of a system prompt, as the cloud reads it."""

    @abstractmethod
    def answer(self, target: str, messages: Sequence[Message] = ()) -> list[int]:
        """Token ids of an answer, with the end of the turn, as they follow `ids(messages)`.

        The end is what an answer ends with in training: one of `ends`, if there is any.
        """

    @abstractmethod
    def jinja(self, space: bool = True) -> str:
        """A chat template whose rendering has the ids of `ids`, bos included.

        `space`: False for readers that put the tokenizer's space after a written bos, too, as
        llama.cpp does and transformers does not.
        """

    @functools.cached_property
    def bos(self) -> list[int]:
        """The bos in front of every text, or nothing."""
        if self.version > 1:
            return own_bos(self.tokenizer)
        return [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]

    @property
    def dated(self) -> bool:
        """True if the turns may hold today's date."""
        return False

    def written_bos(self, text: str, space: bool) -> str:
        """How the bos is written in front of a rendered text so that it has the ids of training.

        Some tokenizers put a space in front of a text, but not after a bos that is written out.
        No space is written where the ids are right without: other readers of the same tokenizer
        would take it for one more token. `space`: False writes none in any case.
        """
        bos = self.tokenizer.bos_token
        right = [*self.bos, *raw_ids(self.tokenizer, text, add_special_tokens=False)]
        bare, spaced = (
            raw_ids(self.tokenizer, f"{bos}{between}{text}", add_special_tokens=False)
            for between in ("", " ")
        )
        return f"{bos} " if space and spaced == right != bare else bos

    @property
    @abstractmethod
    def lead(self) -> str:
        """The text between the cue and an answer: part of the turn, not of the answer."""

    @property
    def kind(self) -> TemplateKind:
        """The values recorded for this template."""
        return TemplateKind(self.name, self.version)

    def identity(self) -> str:
        """A hash of the turns' text, by which a changed chat template is noticed."""
        return "sha256:" + hashlib.sha256(self.jinja().encode()).hexdigest()

    def digest(self) -> str | None:
        """A hash of the token ids of a question and its answer, whatever text they come from.

        None for turns that may hold today's date.
        """
        return self._digest(lambda: [self.ids(question(PROBE)), self.answer(PROBE)])

    def read_digest(self) -> str | None:
        """The same of a system prompt, as the cloud reads it."""
        return self._digest(lambda: self.read(PROBE))

    def _digest(self, ids: Callable[[], Any]) -> str | None:
        if self.dated:
            return None
        return "sha256:" + hashlib.sha256(json.dumps(ids()).encode()).hexdigest()

    def prompt(self, user: str, system: str | None = None) -> list[int]:
        """`ids` of one question, after a system prompt if one is given."""
        return self.ids(question(user, system))

    def content(self, target: str) -> list[int]:
        """`answer` without the end of the turn."""
        ids = self.answer(target)
        return ids[:-1] if ids and ids[-1] in self.ends else ids

    def conversation(
        self, messages: Sequence[Message], turns: Literal["last", "all"] = "all"
    ) -> Conversation:
        """Token ids of a chat of any number of turns, as inference reads and writes them.

        Args:
            messages: the turns; the last one is the assistant's.
            turns: answers with a loss: all of them, or only the last. An earlier one that the
                template writes differently once others follow never has one.

        Raises DataError for messages that do not end with an answer.
        """
        if not messages or messages[-1].get("role") != "assistant":
            raise DataError("a chat to learn from ends with a message of the assistant.")
        asked = self.ids(messages[:-1])
        answer = self.answer(messages[-1]["content"], messages[:-1])
        tokens = asked + answer
        mask = [False] * len(asked) + [True] * len(answer)
        for at, message in enumerate(messages[:-1] if turns == "all" else ()):
            if message["role"] == "assistant":
                begin, end = self._answered(tokens, messages[:at], message["content"])
                mask[begin:end] = [True] * (end - begin)
        return Conversation(tokens, mask)

    @functools.cached_property
    def keeps_answers(self) -> bool:
        """True if a chat has its earlier answers as they were written when they were the last."""
        chat = alternating(("a", "b", "c", "d"))
        learnt = {turns: sum(self.conversation(chat, turns).loss_mask) for turns in ("last", "all")}
        return learnt["all"] > learnt["last"]

    def _answered(
        self, tokens: Sequence[int], before: Sequence[Message], answer: str
    ) -> tuple[int, int]:
        """Begin and end of an earlier answer in a chat's tokens; (0, 0) if it reads differently."""
        known = self.ids(before)
        written = known + self.answer(answer, before)
        if tokens[: len(written)] == written:
            return len(known), len(written)
        # The same text may be split into other tokens, since the answer was written by itself.
        begin = common_length(known, tokens)
        ends = (at + 1 for at in range(begin, len(tokens)) if tokens[at] in self.ends)
        end = next(ends, begin)
        same = self.tokenizer.decode(tokens[:end]) == self.tokenizer.decode(written)
        return (begin, end) if same else (0, 0)


@dataclass(frozen=True)
class TemplateKind:
    """A template for any tokenizer: its name and the version of its tokenization.

    Attributes:
        source: the text of the chat template, for tokenizers that have another; None: their own.
    """

    name: str = "plain"
    version: int = 2
    source: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TemplateKind:
        """The kind recorded in a manifest or a card. Raises DataError for one of a later version.

        Files of the first version record no name: all of it was plain.
        """
        kind = cls(values.get("template", "plain"), values.get("templates", 1))
        if kind.version not in VERSIONS or kind.name not in NAMES:
            raise DataError(
                f"it has the {kind.name!r} template in version {kind.version!r}; this version of "
                f"lorage_jax knows {' and '.join(NAMES)} in the versions 1 and 2. Use the version "
                "that it was made with."
            )
        return kind

    def to_dict(self) -> dict[str, Any]:
        """The fields that manifests and cards record."""
        return {"templates": self.version, "template": self.name}

    def on(self, tokenizer: Any) -> Template:
        """The template of a tokenizer.

        Raises DataError if it has no chat template, and WeightsError if there is no tokenizer.
        """
        from lorage_jax.data.templates.chat import ChatTemplate
        from lorage_jax.data.templates.plain import PlainTemplate

        check_tokenizer(tokenizer)
        if self.name == "chat":
            return ChatTemplate(tokenizer, self.version, self.source)
        return PlainTemplate(tokenizer, self.version)


NEWEST = TemplateKind()


def question(user: str, system: str | None = None) -> list[Message]:
    """The messages of one question, after a system prompt if one is given."""
    return alternating((user,), system)


def alternating(texts: Sequence[str], system: str | None = None) -> list[Message]:
    """The messages of a chat from the texts of user and assistant in alternation.

    A system prompt stands in front if one is given.
    """
    roles = ("user", "assistant")
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, *({"role": roles[i % 2], "content": t} for i, t in enumerate(texts))]


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning of two sequences."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def is_messages(value: Any) -> bool:
    """True for a list of messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(one, Mapping) for one in value)
    )


def check_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """Returns `messages`. Raises DataError unless each has a role and a text."""
    if not messages:
        raise DataError("there are no messages; expected at least the user's.")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(message.get("content"), str):
            raise DataError(
                f"message {number} is {message!r}; expected a role (system, user or assistant) "
                "and a content, both texts."
            )
    return messages
