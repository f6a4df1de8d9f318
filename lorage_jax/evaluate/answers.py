"""Generates answers to many questions, with batching, truncation, stop strings and a journal.

The edge reads a question in the turns of its template, after its conditioning's context, if any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorage_jax.buckets import bucket
from lorage_jax.data.templates import Message, encode, question
from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.arms import Answered
from lorage_jax.evaluate.host_settings import check_generation
from lorage_jax.files.journal import Journal, request_key
from lorage_jax.infer.defaults import default_penalty, generation_defaults
from lorage_jax.infer.generate import eos_ids, generate_tokens
from lorage_jax.infer.prefixes import Prefix
from lorage_jax.infer.score import identity
from lorage_jax.infer.text import GrowingTexts, Stops, continuation, spelling
from lorage_jax.methods.method import Conditioning, Placement
from lorage_jax.models.model import Model
from lorage_jax.progress import progress

BATCH_TOKENS = 8192
Query = str | Sequence[Message]  # a text as it is, or the messages of a chat


def turns(user: str, conditioning: Conditioning) -> list[Message]:
    """The messages of a question, after the conditioning's context if any."""
    return question(user, conditioning.context)


def encoded(model: Model, asked: Sequence[Query]) -> list[list[int]]:
    """Token ids of each question: messages in the turns of the model, a text as it is."""
    return [
        encode(model.tokenizer, one, bos=True) if isinstance(one, str) else model.template.ids(one)
        for one in asked
    ]


def mean_tokens(model: Model, asked: Sequence[Query]) -> float:
    """Mean number of tokens that the model reads per question."""
    return float(np.mean([len(row) for row in encoded(model, asked)]))


def room_for_input(model: Model, max_new_tokens: int) -> int:
    """Tokens that an input may have. Raises ConfigError if the answer leaves no room."""
    room = model.config.max_positions - max_new_tokens
    if room < 1 or max_new_tokens < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens}; expected 1 or more, with room for a question in "
            f"the edge's context of {model.config.max_positions}. Lower --max-new-tokens."
        )
    return room


@dataclass(frozen=True)
class Generation:
    """Generates greedy answers, with the repetition penalty of the model's folder.

    Attributes:
        max_new_tokens: maximum number of tokens per answer.
        stops: strings that end an answer.
        batch_rows: requests per batch; None takes as many as fit into `batch_tokens`.
        batch_tokens: tokens per batch, including padding and cache.
        cut: if an input exceeds the context, keep its end instead of raising ConfigError.
        journal: finished requests, which are not run again.
    """

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    batch_rows: int | None = None
    batch_tokens: int = BATCH_TOKENS
    cut: bool = False
    journal: Journal = field(default_factory=Journal)

    def __call__(self, label: str, placement: Placement, asked: Sequence[Query]) -> Answered[str]:
        """Answers every question with the placed model and its cards.

        `label` is shown with the progress. Raises ConfigError for an input that is too long, unless
        `cut` is set, and for settings in the model's folder that would change answers and are not
        obeyed.
        """
        model = placement.model
        check_generation({}, generation_defaults(model) | {"repetition_penalty": None})
        whole = encoded(model, asked)
        rows, truncated = whole, 0
        if self.cut:
            room = room_for_input(model, self.max_new_tokens)
            fronts = placement.prefix_rows(len(whole))
            taken = [0] * len(whole) if fronts is None else [one.length for one in fronts]
            if max(taken, default=0) >= room:
                raise ConfigError(
                    f"{label}: what stands in front of a question takes {max(taken)} positions, "
                    f"and {self.max_new_tokens} new tokens leave {room} for both. Lower "
                    "--max-new-tokens."
                )
            # Like lm-eval, keep the end.
            rows = [row[-(room - n) :] for row, n in zip(whole, taken, strict=True)]
            truncated = sum(len(cut) < len(row) for cut, row in zip(rows, whole, strict=True))
        prefixes = placement.prefix_rows(len(rows))
        keys = self._keys(placement, rows, prefixes)
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        todo = [i for key, i in first.items() if self.journal.get(key) is None]
        todo.sort(key=lambda i: -len(rows[i]))
        batches = self.journal.part(self._batches(rows, todo))
        share = len(todo) // self.journal.processes
        with progress(label, share) as advance, self.journal.exchanged():
            for batch, filled in batches:
                said = self._write(placement, rows, prefixes, filled)
                self.journal.add({keys[i]: text for i, text in zip(batch, said, strict=False)})
                advance(len(batch))
        read, front = [len(row) for row in whole], [0]
        if prefixes is not None:
            pairs = list(zip(whole, prefixes, strict=True))
            read = [len(row) - one.shared(row) for row, one in pairs]
            front = [one.shared(row) if one.tokens else one.slots for row, one in pairs]
        tokens, slots = float(np.mean(read)), float(np.mean(front))
        return Answered([self.journal.get(key) for key in keys], tokens, truncated, slots)

    def _batches(
        self, rows: Sequence[list[int]], todo: Sequence[int]
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields batches of indices, and the same filled up.

        The last one is filled, so that no program is compiled for it alone.
        """
        start = 0
        while start < len(todo):
            size = self.batch_rows or self._size(len(rows[todo[start]]))
            batch = list(todo[start : start + size])
            yield batch, batch + batch[-1:] * (size - len(batch) if len(todo) > size else 0)
            start += size

    def _size(self, longest: int) -> int:
        return max(1, self.batch_tokens // (bucket(longest) + bucket(self.max_new_tokens)))

    def _keys(
        self,
        placement: Placement,
        rows: Sequence[list[int]],
        prefixes: Sequence[Prefix] | None,
    ) -> list[str]:
        model, cards = placement.model, placement.cards
        base = request_key(
            identity(model, placement.pool),
            *eos_ids(model),
            *_ends(model),
            spelling(model.tokenizer),
            self.max_new_tokens,
            *self.stops,
            *([] if (penalty := default_penalty(model)) == 1 else [f"penalty {penalty}"]),
        )
        gates = [b""] * len(rows)
        if cards is not None:
            gates = [np.asarray(card.gates, np.float32).tobytes() for card in cards]
        fronts = [()] * len(rows) if prefixes is None else [(one.identity,) for one in prefixes]
        return [
            request_key("answer", base, gate, np.asarray(row, np.int32).tobytes(), *front)
            for row, gate, front in zip(rows, gates, fronts, strict=True)
        ]

    def _write(
        self,
        placement: Placement,
        rows: Sequence[list[int]],
        prefixes: Sequence[Prefix] | None,
        batch: Sequence[int],
    ) -> list[str]:
        model, asked = placement.model, [rows[i] for i in batch]
        growing = None
        if self.stops:
            stops = Stops.of(model.tokenizer, self.stops)
            growing = GrowingTexts(model.tokenizer, asked, stops, None)
        written = generate_tokens(
            model,
            asked,
            max_new_tokens=self.max_new_tokens,
            gates=None if placement.cards is None else [placement.cards[i] for i in batch],
            pool=placement.pool,
            prefixes=None if prefixes is None else [prefixes[i] for i in batch],
            watch=None if growing is None else growing.update,
            ends=_ends(model),
        )
        if growing is not None:
            return growing.texts
        return [
            continuation(model.tokenizer, row, ids) for row, ids in zip(asked, written, strict=True)
        ]


def _ends(model: Model) -> tuple[int, ...]:
    """Ids that end the assistant's turn and that the model's config does not name."""
    ends = () if model.template is None else model.template.ends
    return tuple(end for end in ends if end not in eos_ids(model))
