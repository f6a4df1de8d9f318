"""Answers: from the scheduler's pieces to text, and to the objects of OpenAI's API."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorage_jax.infer.chat import Lead
from lorage_jax.infer.text import GrowingTexts, Stops, continuation
from lorage_jax.serve.job import Job, Piece, Reason, TokenScore, joined
from lorage_jax.serve.scheduler import Scheduler


@dataclass
class Delta:
    """An addition to an answer."""

    text: str
    tokens: list[int]
    scores: list[TokenScore]
    reason: Reason | None
    offset: int  # characters of the answer before


@dataclass(eq=False)
class Answer:
    """One answer that grows.

    Attributes:
        job: the request to the device.
        tokenizer: of the model.
        stops: texts before which the answer stops.
        lead: the text between cue and answer, which is left out.
        first_at: when its first token was there, by `time.monotonic`.
    """

    job: Job
    tokenizer: Any
    stops: Stops
    lead: str = ""
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    text: str = ""
    reason: Reason | None = None
    first_at: float | None = None

    def __post_init__(self):
        self._lead, self._sent = Lead(self.lead), 0
        self._growing = GrowingTexts(self.tokenizer, [self.job.ids], self.stops, self._show)

    def add(self, piece: Piece) -> Delta:
        """Takes a piece and returns what it adds; a stop text ends the answer."""
        before = len(self.text)
        self.tokens += piece.tokens
        self.scores += piece.scores or []
        if self._growing.update([self.tokens], [piece.last])[0]:
            stopped = piece.reason != "stop" and self._stopped()
            self.reason = "stop" if stopped else piece.reason or "stop"
            if stopped:
                self._drop_unread()
            self.text += self._lead.end()
        new = slice(self._sent, len(self.tokens))
        self._sent = max(self._sent, len(self.tokens))
        return Delta(self.text[before:], self.tokens[new], self.scores[new], self.reason, before)

    def _show(self, _: int, piece: str) -> None:
        self.text += self._lead(piece)

    def _whole(self, count: int) -> str:
        return continuation(self.tokenizer, self.job.ids, self.tokens[:count])

    def _stopped(self) -> bool:
        return bool(self.stops.texts) and self._growing.texts[0] != self._whole(len(self.tokens))

    def _drop_unread(self) -> None:
        """Leaves out tokens after the one that completed the stop text."""
        kept = self._growing.texts[0]
        while len(self.tokens) > self._sent:
            shorter = self._whole(len(self.tokens) - 1)
            if len(shorter) < len(kept) or not any(stop in shorter for stop in self.stops.texts):
                break
            self.tokens.pop()
        del self.scores[len(self.tokens) :]


async def deltas(
    scheduler: Scheduler, answers: Sequence[Answer], whole: bool = False
) -> AsyncIterator[tuple[int, Delta]]:
    """Runs answers on the device and yields (number, Delta) until all have ended.

    With `whole`, an answer without stop texts comes as one delta. Whatever ends this generator
    frees the rows of the rest. Raises the error of a failed job.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue()

    def deliver_to(number: int, answer: Answer):
        once, held = whole and not answer.stops.texts, []

        def deliver(piece: Piece) -> None:
            if answer.first_at is None:
                answer.first_at = time.monotonic()
            if once:
                held.append(piece)
                if not piece.last:
                    return
                piece = joined(held)
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, (number, piece))

        return deliver

    for number, answer in enumerate(answers):
        answer.job.deliver = deliver_to(number, answer)
    scheduler.submit(*(answer.job for answer in answers))
    try:
        while any(answer.reason is None for answer in answers):
            number, piece = await queue.get()
            answer = answers[number]
            if answer.reason is not None:
                continue
            if piece.error is not None:
                raise piece.error
            yield number, answer.add(piece)
            if answer.reason is not None and not piece.last:
                scheduler.cancel(answer.job)
    finally:
        for answer in answers:
            if not answer.job.done:
                scheduler.cancel(answer.job)


@dataclass(frozen=True)
class Form:
    """How the answers to one request are written.

    Attributes:
        model: its name in the request.
        chat: a chat, or continuations.
        alternatives: likeliest tokens per token; None: no log-probabilities.
        spell: the text of a token by itself.
    """

    model: str
    chat: bool
    alternatives: int | None
    spell: Callable[[int], str]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        choices = []
        for i, one in enumerate(answers):
            own = (
                {"message": {"role": "assistant", "content": one.text, "refusal": None}}
                if self.chat
                else {"text": one.text}
            )
            scores = self._logprobs(one.tokens, one.scores, 0)
            choices.append({"index": i, **own, "logprobs": scores, "finish_reason": one.reason})
        return self._object(choices, stream=False) | {"usage": usage(answers)}

    def first(self, number: int) -> dict[str, Any]:
        """The chunk that opens a streamed chat."""
        return self._chunk(number, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def part(self, number: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of what was added; none if it is not yet a text."""
        scores = None
        if delta.tokens:
            scores = self._logprobs(delta.tokens, delta.scores, delta.offset)
        if not self.chat:
            if not (delta.text or delta.reason or scores):
                return []
            return [self._chunk(number, {"text": delta.text}, scores, delta.reason)]
        chunks = []
        if delta.text or scores:
            chunks.append(self._chunk(number, {"delta": {"content": delta.text}}, scores, None))
        if delta.reason:
            chunks.append(self._chunk(number, {"delta": {}}, None, delta.reason))
        return chunks

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk with the numbers of tokens."""
        return self._object([], stream=True) | {"usage": usage(answers)}

    def _chunk(self, number: int, own: dict[str, Any], scores: Any, reason: Any) -> dict[str, Any]:
        choice = {"index": number, **own, "logprobs": scores, "finish_reason": reason}
        return self._object([choice], stream=True)

    def _object(self, choices: list[dict[str, Any]], stream: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if stream else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _logprobs(
        self, tokens: list[int], scores: list[TokenScore], offset: int
    ) -> dict[str, Any] | None:
        if self.alternatives is None:
            return None
        pairs = list(zip(tokens, scores, strict=True))
        if self.chat:
            content = [
                self._spelled(token, score.logprob)
                | {"top_logprobs": [self._spelled(*one) for one in self._best(score)]}
                for token, score in pairs
            ]
            return {"content": content, "refusal": None}
        spelled = [self.spell(token) for token in tokens]
        starts = list(itertools.accumulate(map(len, spelled), initial=offset))[:-1]
        best = [{self.spell(i): p for i, p in self._best(score)} for _, score in pairs]
        return {
            "tokens": spelled,
            "token_logprobs": [score.logprob for _, score in pairs],
            "top_logprobs": best if self.alternatives else None,
            "text_offset": starts,
        }

    def _best(self, score: TokenScore) -> list[tuple[int, float]]:
        return score.likeliest[: self.alternatives]

    def _spelled(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.spell(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # else part of a character
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """The numbers of tokens of all answers; an end token is not counted."""
    asked = sum(len(one.job.ids) for one in answers)
    given = sum(len(one.tokens) for one in answers)
    return {
        "prompt_tokens": asked,
        "completion_tokens": given,
        "total_tokens": asked + given,
    }
