"""A service: one edge, its generator and its cards; it turns requests into jobs."""

from __future__ import annotations

import asyncio
import copy
import functools
import io
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.data.templates import Message, encode_marked
from lorage_jax.errors import ConfigError, LorageError, WeightsError
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.card import Card, card_from_dict
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.lora_gguf import export_lora_gguf
from lorage_jax.infer.chat import check_last
from lorage_jax.infer.defaults import notice_unobeyed
from lorage_jax.infer.generate import eos_ids
from lorage_jax.infer.text import Stops
from lorage_jax.models.model import Model
from lorage_jax.serve.answers import Answer
from lorage_jax.serve.cards import (
    AUTO,
    EDGE,
    CardMaker,
    CardShelf,
    card_name,
    check_name,
    prompt_name,
)
from lorage_jax.serve.errors import RequestError
from lorage_jax.serve.job import Job
from lorage_jax.serve.requests import Settings
from lorage_jax.serve.scheduler import Scheduler

CONTEXT = 2048  # tokens of prompt and answer, by default


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        slots: requests that run at the same time.
        queue: requests that may wait.
        context: tokens of a request's prompt and answer; None: the model's own, at most CONTEXT.
        body: bytes of a request.
    """

    slots: int = 16
    queue: int = 256
    context: int | None = None
    body: int = 1 << 20

    def __post_init__(self):
        for name, low in (("slots", 1), ("queue", 1), ("context", 2), ("body", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                flag = "max-body" if name == "body" else name
                raise ConfigError(f"--{flag} is {value}; expected {low} or more.")


class Service:
    """One generator with its edge and the cards of a folder.

    Args:
        generator: makes the cards.
        edge: its edge, without anything merged.
        cards: folder of the cards.
        limits: of the server.

    Raises WeightsError for another edge than that of the generator's training.
    """

    def __init__(self, generator: Generator, edge: Model, cards: Path, limits: Limits):
        if edge.fingerprint != generator.edge_fingerprint:
            raise WeightsError(
                f"{edge.source} is not the edge that this generator was trained for: its "
                f"fingerprint is {edge.fingerprint}, expected "
                f"{generator.edge_fingerprint}. Load that edge."
            )
        self.edge, self.limits = generator.speaking(edge), limits
        # For decoding: encoding, on other threads, changes the state of the edge's own.
        self.tokenizer = copy.deepcopy(self.edge.tokenizer)
        self.spell = functools.cache(functools.partial(_spelled, self.tokenizer))
        self.generator = generator
        self.shelf = CardShelf(cards, generator, self.edge)
        self.maker = CardMaker(generator)
        self.scheduler = Scheduler(self.edge, generator.pool, limits.slots, limits.queue)
        room = edge.config.max_positions
        if limits.context is not None and limits.context > room:
            raise ConfigError(f"--context is {limits.context}; this model's is {room}.")
        self.context = min(room, limits.context or CONTEXT)

    def start(self, warm: int = 0) -> None:
        """Compiles the programs of requests up to `warm` tokens, and starts the threads."""
        notice_unobeyed(self.edge)
        warm = min(warm, self.context - 2)
        self.scheduler.warm(warm)
        self.maker.warm(warm)
        self.scheduler.start()
        self.maker.start()

    def stop(self) -> None:
        """Ends the threads; what has not finished gets an error."""
        self.scheduler.stop()
        self.maker.stop()

    async def chat(self, settings: Settings, messages: list[Message]) -> list[Answer]:
        """The answer to a chat, not yet begun. Raises RequestError."""
        template = self.edge.template
        gates, messages = await self._gates_of_chat(settings.model, messages)
        with _request_errors("messages"):
            check_last(messages, adapted=gates is not None)
            ids = await asyncio.to_thread(template.ids, messages)
        return self._answers(settings, "messages", [ids], gates, template.ends, template.lead)

    async def continuations(self, settings: Settings, prompts: Sequence[Any]) -> list[Answer]:
        """The continuations of texts or token ids, not yet begun. Raises RequestError."""
        gates = await self._gates(settings.model)
        rows = await asyncio.to_thread(self._rows, prompts)
        return self._answers(settings, "prompt", rows, gates)

    def _rows(self, prompts: Sequence[Any]) -> list[Sequence[int]]:
        """The token ids of texts, or those that were given."""
        size, tokenizer, rows = self.edge.config.vocab_size, self.edge.tokenizer, []
        for i, prompt in enumerate(prompts):
            with _request_errors("prompt"):
                row = encode_marked(tokenizer, prompt) if isinstance(prompt, str) else prompt
            if not row:
                raise RequestError(f"prompt {i} has no tokens; expected a text.", param="prompt")
            if not 0 <= min(row) <= max(row) < size:
                raise RequestError(
                    f"the token ids run from {min(row)} to {max(row)}; this model's vocabulary is "
                    f"0 to {size - 1}.",
                    param="prompt",
                )
            rows.append(row)
        return rows

    def _answers(
        self,
        settings: Settings,
        param: str,
        rows: Sequence[Sequence[int]],
        gates: np.ndarray | None,
        ends: Sequence[int] = (),
        lead: str = "",
    ) -> list[Answer]:
        stops = Stops.of(self.tokenizer, settings.stop)
        ends = tuple(sorted({*eos_ids(self.edge), *ends, *stops.ids}))
        answers = []
        for ids in rows:
            job = Job(
                ids=ids,
                most=self._most(settings, param, len(ids)),
                deliver=_nobody,
                gates=gates,
                sampling=settings.sampling,
                ends=ends,
                scored=settings.alternatives is not None,
            )
            answers.append(Answer(job, self.tokenizer, stops, lead))
        return answers

    def _most(self, settings: Settings, param: str, length: int) -> int:
        """The most tokens of an answer to a prompt of `length` tokens, the request's `param`."""
        room, most = self.context - length, settings.most
        if room < 1 or (most is not None and most > room):
            asked = "" if most is None else f" and {most} new ones were asked for"
            raise RequestError(
                f"the prompt has {length} tokens{asked}; this server's context is {self.context}.",
                param=param if most is None else "max_tokens",
                code="context_length_exceeded",
            )
        return min(settings.usual, room) if most is None else most

    async def _gates_of_chat(
        self, model: str, messages: list[Message]
    ) -> tuple[np.ndarray | None, list[Message]]:
        """The gates that answer, and the messages that the edge reads."""
        if model not in (f"{EDGE}:{AUTO}", AUTO):
            return await self._gates(model), messages
        count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
        system = "\n\n".join(str(message["content"]) for message in messages[:count])
        if not system.strip() or count == len(messages):
            raise RequestError(
                f"{EDGE}:{AUTO} makes the card of the system message: expected one, with a text, "
                f"and a user's message after it. Without a system prompt, use {EDGE!r}.",
                param="messages",
            )
        card = await self._made(system, "messages")
        return np.asarray(card.gates), messages[count:]

    async def _gates(self, model: str) -> np.ndarray | None:
        """The gates of a card's name; None for the base."""
        if model == EDGE:
            return None
        if model in (f"{EDGE}:{AUTO}", AUTO):
            raise RequestError(f"{EDGE}:{AUTO} needs a chat, whose system message it reads.")
        return np.asarray((await self.card(model)).gates)

    async def card(self, name: str) -> Card:
        """The card of a name, with or without `edge:` in front. Raises NotFound."""
        return await asyncio.to_thread(self.shelf.get, name.removeprefix(f"{EDGE}:"))

    async def _made(self, system: str, param: str) -> Card:
        with _request_errors(param):
            future = await asyncio.to_thread(self.maker.card, system)
        return await asyncio.wrap_future(future)

    async def new_card(self, system: str | None, name: str | None, values: Any) -> tuple[str, Card]:
        """Makes, or takes, a card and keeps it. Raises RequestError."""
        if name is not None:
            check_name(name)
        if system is not None:
            card, name = await self._made(system, "system"), name or prompt_name(system)
        else:
            with _request_errors("card"):
                card = card_from_dict(values, "card")
            name = name or card_name(card)
        with _request_errors("card"):
            return name, await asyncio.to_thread(self.shelf.put, name, card)

    def export(self, name: str, card: Card, kind: str) -> tuple[bytes, str]:
        """A card for a device as bytes and the name of their file: `peft` (a zip) or `gguf`."""
        pool = self.generator.pool
        with tempfile.TemporaryDirectory() as folder, _request_errors("format"):
            if kind == "gguf":
                path = Path(folder) / f"{name}.gguf"
                export_lora_gguf(pool, card, self.edge, path)
                return path.read_bytes(), path.name
            path = Path(folder) / name
            export_adapter(pool, card, self.edge, path)
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as file:
                for one in sorted(path.rglob("*")):
                    file.write(one, one.relative_to(folder))
            return packed.getvalue(), f"{name}.zip"


def _spelled(tokenizer: Any, token: int) -> str:
    """The text of a token by itself."""
    return tokenizer.decode([token], clean_up_tokenization_spaces=False)


def _nobody(piece: Any) -> None:
    """Takes the pieces of a job that has not begun."""


@contextmanager
def _request_errors(param: str) -> Iterator[None]:
    """Turns errors about the input into RequestErrors that name the field."""
    try:
        yield
    except RequestError:
        raise
    except LorageError as error:
        raise RequestError(str(error), param=param) from None
