"""Answers in the turns that a model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lorage_jax.data.templates import (
    Message,
    Template,
    check_messages,
    check_tokenizer,
    is_messages,
    question,
)
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.generator.card import Card
from lorage_jax.infer.defaults import sampling_for
from lorage_jax.infer.gates import Gates
from lorage_jax.infer.generate import continue_rows
from lorage_jax.infer.sample import Sampling
from lorage_jax.models.experts import Experts
from lorage_jax.models.model import Model, require_model

DEFAULT_TOKENS = 128  # of an answer, where the context has room for them

Chat = str | Sequence[Message]  # a user's text, or the messages so far


def chat(
    model: Model,
    messages: Chat | Sequence[Chat],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = (),
    gates: Gates | None = None,
    pool: Experts | None = None,
    stream: Callable[[int, str], Any] | None = None,
) -> str | list[str]:
    """Answers a user, in the turns of the model's template.

    Args:
        model: a model with a tokenizer; a specialised one answers in the turns of its generator.
        messages: a user's text; messages with `role` (system, user, assistant) and `content`; or
            a sequence of either, for which the result is a list of answers.
        max_new_tokens: the most tokens of an answer; by default 128, or as many as fit.
        sampling: sampling parameters; the default is greedy decoding, as in `generate`.
        temperature, top_k, top_p, seed: the fields of `sampling`, as a shorthand.
        stop: one stop string or several, besides the end of the turn.
        gates, pool: adapters to apply without merging, as in `forward`.
        stream: called as stream(row, piece) whenever more text is final.

    Raises DataError if `messages` is not a chat that ends with a question; ConfigError for an
    invalid parameter or a length beyond the context; and WeightsError for a model without a
    tokenizer.
    """
    template = chat_template(model, gates)
    one, chats = _chats(messages)
    rows = [chat_ids(template, each) for each in chats]
    leads = [Lead(template.lead) for _ in rows]

    def show(row: int, piece: str) -> None:
        if stream is not None and (rest := leads[row](piece)):
            stream(row, rest)

    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    texts = continue_rows(
        model,
        rows,
        max_new_tokens=answer_tokens(model, rows, max_new_tokens),
        sampling=sampling_for(model, sampling, **drawn),
        stop=stop,
        gates=gates,
        pool=pool,
        stream=None if stream is None else show,
        ends=template.ends,
    )
    for row, lead in enumerate(leads):
        if stream is not None and (rest := lead.end()):
            stream(row, rest)
    answers = [text.removeprefix(template.lead) for text in texts]
    return answers[0] if one else answers


def chat_template(model: Model, gates: Gates | None = None) -> Template:
    """The template in which a model answers: that of its cards, if there are any, else its own.

    Raises WeightsError if there is none, and ConfigError if the cards have different ones, or if
    `model` is not a Model.
    """
    require_model(model)
    check_tokenizer(model.tokenizer, model.source or "this model")
    given = gates if isinstance(gates, Sequence) else [gates]
    cards = [card for card in given if isinstance(card, Card)]
    if len({card.template for card in cards}) > 1:
        raise ConfigError("the cards were trained in different turns; ask with each by itself.")
    return cards[0].turns(model) if cards else model.template


def _chats(messages: Any) -> tuple[bool, list[Any]]:
    """True with a chat alone, or False with several. Raises DataError for what is neither."""
    if isinstance(messages, str) or is_messages(messages):
        return True, [messages]
    if isinstance(messages, Mapping):
        raise DataError(
            f"messages is {_shown(messages)}; expected a text, or a list of messages. A single "
            'message belongs into a list: [{"role": "user", "content": "..."}].'
        )
    if isinstance(messages, bytes | bytearray) or not isinstance(messages, Iterable):
        raise DataError(f"messages is {_shown(messages)}; expected a text, or a list of messages.")
    return False, list(messages)


def chat_ids(template: Template, messages: Any) -> list[int]:
    """The token ids of a user's text, or of messages that end with the user's.

    Raises DataError for anything else. A user's message may have no text where the system prompt
    is the whole task, as in training; a text by itself may not.
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise DataError(
                "the user's text is empty; expected a question. Where the system prompt is the "
                'whole task, ask with [{"role": "user", "content": ""}].'
            )
        messages = question(messages)
    if not is_messages(messages):
        raise DataError(f"{_shown(messages)} is not a chat; expected a text, or messages.")
    check_last(messages)
    return template.ids(messages)


def check_last(messages: Sequence[Message], adapted: bool = True) -> None:
    """Raises DataError unless the last message is the user's, which is then answered.

    It needs a text unless a system message, or an adapter of the model that is `adapted`, may hold
    the whole task.
    """
    last = check_messages(messages)[-1]
    if last["role"] != "user":
        raise DataError(
            f"the last message has the role {last['role']!r}; expected the user's, which is "
            "answered."
        )
    told = any(one["role"] == "system" and one["content"].strip() for one in messages)
    if not (adapted or told or last["content"].strip()):
        raise DataError("the user's message is empty; expected a text.")


def _shown(value: Any) -> str:
    """The beginning of a value, for messages."""
    return f"{str(value)[:60]!r}"


def answer_tokens(model: Model, rows: Sequence[Sequence[int]], wanted: int | None) -> int:
    """`wanted`, or by default as many new tokens as an answer may have."""
    if wanted is not None:
        return wanted
    room = model.config.max_positions - max(map(len, rows), default=0)
    return max(1, min(DEFAULT_TOKENS, room))  # `generate` raises where there is no room


class Lead:
    """Takes the template's lead off a text that arrives in pieces.

    `end`, after the last piece, returns what was held back because it could have been the lead.
    """

    def __init__(self, lead: str):
        self._lead, self._held = lead, ""

    def __call__(self, piece: str) -> str:
        if not self._lead:
            return piece
        self._held += piece
        if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
            return ""
        text = self._held.removeprefix(self._lead)
        self._lead = self._held = ""
        return text

    def end(self) -> str:
        held, self._held = self._held, ""
        return held
