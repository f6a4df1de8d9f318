"""The cards of a server: made online, kept in a folder, found again after a restart.

The folder is what counts: a card that another server or `lorage specialize` puts there is found on
its first use, and one that is deleted there is gone.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
import logging
import re
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from lorage_jax.buckets import SMALLEST, bucket, bucket_sizes
from lorage_jax.errors import DataError, LorageError, OutputError, WeightsError
from lorage_jax.files.outputs import check_file
from lorage_jax.generator.card import Card, load_card
from lorage_jax.generator.generator import Generator, prompt_digest, prompt_tokens, specialize
from lorage_jax.models.model import Model
from lorage_jax.serve.errors import Busy, Failed, NotFound, RequestError
from lorage_jax.serve.worker import Worker

_log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
EDGE, AUTO = "edge", "auto"
MOST_AUTOMATIC = 4096  # cards of system messages that are remembered: some kilobytes each
AT_ONCE = (1, 4)  # prompts of one cloud pass
MOST_WAITING = 64
CLOSE = 1e-4  # between the gates of the same prompt in passes of different sizes


def prompt_name(system: str) -> str:
    """The name of a card that was given none: a hash of its system prompt."""
    return "c-" + prompt_digest(system)[:16]


def card_name(card: Card) -> str:
    """The name of a card that was sent without one: that of its prompt, or a hash of its gates."""
    digest = card.about.get("prompt_sha256")
    if not isinstance(digest, str) or not digest:
        digest = hashlib.sha256(np.asarray(card.gates, "<f4").tobytes()).hexdigest()
    return "c-" + digest[:16]


def check_folder(folder: Path) -> None:
    """Raises OutputError unless a folder can keep cards; one of cards to read only is warned of."""
    try:
        check_file(folder / "NAME.json", overwrite=True)
    except OutputError as error:
        if not any(folder.glob("*.json")):
            raise OutputError(f"no card can be kept in the folder of --cards. {error}") from None
        _log.warning("The cards in %s can be used, but none can be added. %s", folder, error)


class CardShelf:
    """The cards in a folder that go with one generator and its edge.

    Args:
        folder: where `NAME.json` are; it need not exist yet.
        generator: whose cards they are.
        edge: the edge they are for.
    """

    def __init__(self, folder: Path, generator: Generator, edge: Model):
        self.folder, self.generator, self.edge = folder, generator, edge
        self._known: dict[str, tuple[int, Card]] = {}
        self._refused: set[Path] = set()

    def get(self, name: str) -> Card:
        """The card of a name. Raises NotFound if there is none, RequestError if it does not fit."""
        path = self.folder / f"{name}.json"
        try:
            if not NAME.fullmatch(name):
                raise FileNotFoundError
            stamp = path.stat().st_mtime_ns
        except OSError:
            self._known.pop(name, None)
            raise not_found(name) from None
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            try:
                card = self._checked(load_card(path))
            except WeightsError as error:
                raise RequestError(str(error), param="model", code="card_unusable") from None
            self._known[name] = known = (stamp, card)
        return known[1]

    def put(self, name: str, card: Card) -> Card:
        """Writes a card under a new name; the same card again changes nothing.

        Raises RequestError if the name has another card, or a file that is none; Failed if it
        cannot be written.
        """
        self._checked(card)
        about = {"created": int(time.time()), **card.about}
        card = dataclasses.replace(card, about=about)
        path = self._path(name)
        for _ in range(2):
            if path.exists():
                old, reason = self._old(name)
                if old is not None and _same(old, card):
                    return old
                if old is None and not reason:
                    continue  # another server has deleted it
                raise RequestError(
                    f"there is another card {name!r}{reason}; delete it first, or choose another "
                    "name.",
                    param="name",
                    code="card_exists",
                    status=409,
                )
            try:
                card.save(path)
                return card
            except OutputError as error:
                if not path.exists():  # else another server was faster
                    raise Failed(str(error), code="card_not_written", status=507) from None
        raise RequestError(f"the card {name!r} changes too often.", param="name", status=409)

    def delete(self, name: str) -> None:
        """Deletes a card, also one that cannot be used. Raises NotFound."""
        self._known.pop(name, None)
        try:
            if not NAME.fullmatch(name):
                raise FileNotFoundError
            (self.folder / f"{name}.json").unlink()
        except FileNotFoundError:
            raise not_found(name) from None
        except OSError as error:
            raise Failed(
                f"the card {name!r} cannot be deleted: {error.strerror or error}.",
                code="card_not_deleted",
            ) from None

    def _old(self, name: str) -> tuple[Card | None, str]:
        """The card that has a name, or None and why it cannot be used: "" if it is gone."""
        try:
            return self.get(name), ""
        except NotFound:
            return None, ""
        except RequestError as error:
            return None, f", which cannot be used ({str(error).rstrip('.')})"

    def all(self) -> dict[str, Card]:
        """Every card by name; files for another generator or edge are skipped."""
        found = {}
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            if not NAME.fullmatch(path.stem):
                continue
            try:
                found[path.stem] = self.get(path.stem)
            except LorageError as error:
                if path not in self._refused:
                    self._refused.add(path)
                    _log.warning("%s is left out: %s", path, error)
        return found

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}.json"

    def _checked(self, card: Card) -> Card:
        """The card. Raises WeightsError unless it is for this edge, generator and turns.

        Nor may it hold facts that no answer could list.
        """
        card.check(self.edge, self.generator.pool)
        _check_facts(card)
        turns = {card.about.get("turns"), self.generator.turns.get("edge"), None}
        if card.template.to_dict() != self.generator.template.to_dict() or len(turns) > 2:
            raise WeightsError("this card was trained in other turns than the generator's.")
        return card


def _check_facts(card: Card) -> None:
    """Raises WeightsError unless a card's facts are of the right kinds, and valid JSON."""
    for name, kind, what in (("created", int, "a whole number"), ("turns", str, "a text")):
        value = card.about.get(name)
        if value is not None and type(value) is not kind:
            raise WeightsError(
                f"this card's {name!r} is {value!r:.40}; expected {what}. Correct it, or leave it "
                "out."
            )
    try:
        facts = [card.about, card.edge_arithmetic]
        json.dumps(facts, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"this card's facts are not valid JSON: {str(error)[:80]}. Correct 'about', or leave "
            "it out."
        ) from None


def not_found(name: str) -> NotFound:
    """The error for a name that no card has."""
    return NotFound(
        f"the model {EDGE}:{name[:80]} does not exist: there is no card {name[:80]!r}. "
        "POST /v1/cards makes one; GET /v1/models lists them.",
        param="model",
        code="model_not_found",
    )


def _same(old: Card, card: Card) -> bool:
    """True for the same card: gates that rounding may part, or the same prompt asked again.

    Prompts that share a cloud pass round differently from one alone. Only a card that was made
    here, which has its pool, counts by its prompt: the gates of one that is sent are what it is.
    """
    asked = card.about.get("prompt_sha256") if card.pool is not None else None
    if isinstance(asked, str) and asked == old.about.get("prompt_sha256"):
        return True
    return bool(np.allclose(old.gates, card.gates, rtol=0, atol=CLOSE))


def check_name(name: str) -> str:
    """Returns a card's name. Raises RequestError for one that could not be a file or a model."""
    if not NAME.fullmatch(name) or name in (AUTO, EDGE) or name.endswith("."):
        raise RequestError(
            f"the card's name is {name[:80]!r}; expected 1 to 64 letters, digits, '.', '_' or '-', "
            f"beginning with a letter or digit, and neither {AUTO!r} nor {EDGE!r}.",
            param="name",
        )
    return name


class CardMaker(Worker):
    """Makes cards of system prompts on a thread of its own; those that wait share a cloud pass."""

    def __init__(self, generator: Generator):
        super().__init__("lorage-cards")
        self.generator = generator
        self.made, self.seconds = 0, 0.0
        self._waiting: deque[tuple[str, Future[Card]]] = deque()
        self._known: OrderedDict[str, Future[Card]] = OrderedDict()

    def warm(self, tokens: int) -> None:
        """Compiles the cloud's programs for prompts up to so many tokens, alone and together."""
        generator = self.generator
        most = min(tokens, generator.cloud.config.max_positions - generator.edge.layers)

        def length(words: int) -> int:
            return len(generator.reads.read("a " * words))

        done: set[int] = set()
        for size in bucket_sizes(SMALLEST, most):
            words = bisect.bisect_right(range(1, size + 1), size, key=length)
            if words and (read := bucket(length(words))) not in done:
                done.add(read)
                for count in AT_ONCE:
                    specialize(generator, ["a " * words] * count)

    def card(self, system: str) -> Future[Card]:
        """The card of a system prompt: remembered, being made, or queued.

        Raises DataError for a prompt that is empty or too long for the cloud, Busy if too many
        wait, and Stopping.
        """
        system = system.strip()  # as the command line does
        key = prompt_name(system)
        with self._changed:
            if (found := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return found
        prompt_tokens(self.generator, system)  # raises
        with self._changed:
            self._check_open()
            if (found := self._known.get(key)) is not None:
                return found
            if len(self._waiting) >= MOST_WAITING:
                raise Busy(f"{len(self._waiting)} system prompts are waiting. Try again later.")
            future: Future[Card] = Future()
            future.set_running_or_notify_cancel()  # a client that goes does not stop the pass
            self._known[key] = future
            while len(self._known) > MOST_AUTOMATIC:
                self._known.popitem(last=False)
            self._waiting.append((system, future))
            self._changed.notify()
            return future

    def _due(self) -> bool:
        return bool(self._waiting)

    def _turn(self) -> None:
        with self._changed:
            count = min(len(self._waiting), AT_ONCE[-1])
            batch = [self._waiting.popleft() for _ in range(count)]
        self._make(batch)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            batch = list(self._waiting)
            self._waiting.clear()
        self._give_up(batch, error)

    def _make(self, batch: list[tuple[str, Future[Card]]]) -> None:
        began = time.monotonic()
        prompts = [system for system, _ in batch]
        size = next(n for n in AT_ONCE if n >= len(prompts))
        try:
            cards = specialize(self.generator, prompts + prompts[-1:] * (size - len(prompts)))
        except Exception as error:
            if not isinstance(error, DataError):
                _log.exception("Making cards failed.")
            self._give_up(batch, error)
            return
        self.made += len(batch)
        self.seconds += time.monotonic() - began
        for (_, future), card in zip(batch, cards, strict=False):
            future.set_result(card)

    def _give_up(self, batch: list[tuple[str, Future[Card]]], error: Exception) -> None:
        """Gives those who wait for these prompts an error; the next one who asks tries again."""
        with self._changed:
            for system, _ in batch:
                self._known.pop(prompt_name(system), None)
        for _, future in batch:
            future.set_exception(error)
