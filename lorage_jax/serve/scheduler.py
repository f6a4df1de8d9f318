"""Continuous batching: one thread owns the device and runs all requests in the slots of one batch.

Between two chunks of tokens it frees the rows of requests that were cancelled, reads the prompts
that wait, and hands out what was generated. Reading a prompt stalls the other rows for as long as
it takes. The state has as many rows and as much room per row as the running requests need, in a
few sizes, so that few programs are compiled and a single request does not pay for all slots.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lorage_jax.buckets import SMALLEST, bucket, bucket_sizes
from lorage_jax.errors import LorageError
from lorage_jax.infer.defaults import default_penalty
from lorage_jax.infer.generate import eos_ids
from lorage_jax.infer.sample import Sampling
from lorage_jax.infer.slots import (
    NO_TOKEN,
    Choice,
    PackedPrompts,
    Prefilled,
    Requests,
    Slots,
    decode,
    insert,
    new_slots,
    prefill,
    release,
    resize,
)
from lorage_jax.models.bits import program_params
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model
from lorage_jax.serve.errors import Busy
from lorage_jax.serve.job import Job, Piece, Reason, TokenScore
from lorage_jax.serve.requests import MOST_STOPS
from lorage_jax.serve.worker import Worker

_log = logging.getLogger(__name__)

READ_AT_ONCE = 16  # prompts that are read together
READ_TOKENS = 512  # of prompts that are read together; a longer one is read by itself
SMALLEST_ROOM = 64  # tokens
AT_ONCE = (1, 2, 4, 8)  # tokens per chunk: as many as fit into this time
CHUNK_SECONDS = 0.03
FREED = 4  # of the rows, one in so many must have ended before requests that wait are read
PATIENCE = 8  # chunks with too many rows before the state becomes smaller


@dataclass
class Counts:
    """Counts of the scheduler's work, for `/metrics`."""

    prompts: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cancelled: int = 0
    failed: int = 0
    chunks: int = 0
    seconds: float = 0.0  # on the device


class Scheduler(Worker):
    """Runs jobs on one model, each with the gates of its own card.

    Args:
        model: the base edge.
        pool: the experts that gates weigh; None for a model without cards.
        slots: the most requests that run at the same time.
        queue: the most requests that may wait.
    """

    def __init__(self, model: Model, pool: Pool | None, slots: int = 16, queue: int = 256):
        super().__init__("lorage-scheduler")
        self.model, self.pool, self.slots, self.most_waiting = model, pool, slots, queue
        self.counts = Counts()
        self._params = program_params(model.params)
        penalty = default_penalty(model)
        self._penalty = None if penalty == 1 else np.float32(penalty)
        own = () if model.template is None else model.template.ends
        self._most_ends = len({*eos_ids(model), *own}) + MOST_STOPS
        self._pool = None if pool is None else pool.for_decoding()
        self._row_sizes, self._read_rows = row_sizes(slots), min(slots, READ_AT_ONCE)
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._state: Slots | None = None
        self._oversized, self._step_seconds = 0, 0.0

    def submit(self, *jobs: Job) -> None:
        """Queues jobs: all of them or, with an error, none.

        Raises Busy if that many cannot wait, and Stopping after `stop`.
        """
        with self._changed:
            self._check_open()
            if len(self._waiting) + len(jobs) > self.most_waiting:
                raise Busy(
                    f"{len(self._waiting)} requests are waiting, and at most {self.most_waiting} "
                    "may. Try again later."
                )
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Frees the job's row, or its place in the queue; nothing more is delivered."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of requests in slots."""
        return len(self._running)

    def warm(self, tokens: int) -> None:
        """Compiles the programs of requests up to so many tokens, before the thread starts.

        Prompts are read together in every size, longer ones alone; tokens are generated in every
        number of rows and room.
        """
        if tokens < 1:
            return
        longest = max(1, tokens - 2)
        most = max(longest, min(READ_TOKENS, READ_AT_ONCE * longest))
        for count, size in itertools.product(self._row_sizes, bucket_sizes(SMALLEST, bucket(most))):
            total = min(size, count * longest)
            if bucket(total) == size and total >= count and (count == 1 or size <= READ_TOKENS):
                lengths = [total // count + (i < total % count) for i in range(count)]
                self._try([Job([0] * length, 2, _ignore) for length in lengths])
        rooms = bucket_sizes(SMALLEST_ROOM, room_size(tokens), per_octave=1)
        for count, room in itertools.product(self._row_sizes, rooms):
            self._try([Job([0], room - 1, _ignore) for _ in range(count)])
        self.counts, self._step_seconds = Counts(), 0.0

    def _try(self, jobs: list[Job]) -> None:
        """Reads prompts and generates one chunk, before the thread starts."""
        self._waiting.extend(jobs)
        self._turn()
        for job in jobs:
            job.cancelled = True
        self._turn()

    def _due(self) -> bool:
        return bool(self._waiting or self._running)

    def _turn(self) -> None:
        """Frees rows, reads waiting prompts, and generates one chunk."""
        began = time.monotonic()
        self._drop_cancelled()
        while batch := self._next_batch():
            self._read(batch)
        if self._running:
            self._fit(0)
            self._decode()
        if not self._due():
            self._state = None  # an idle server holds no cache
        self.counts.seconds += time.monotonic() - began

    def _fail(self, error: Exception) -> None:
        """Gives everybody the error, and begins anew."""
        if not isinstance(error, LorageError):
            _log.exception("The requests that were running or waiting failed.")
        with self._changed:
            jobs = [*self._running.values(), *self._waiting]
            self._running, self._state = {}, None
            self._waiting.clear()
        self._give_up(jobs, error)

    def _give_up(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            if not (job.done or job.cancelled):
                self.counts.failed += 1
                job.done = True
                job.deliver(Piece([], error=error))

    def _drop_cancelled(self) -> None:
        with self._changed:
            before = len(self._waiting)
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            gone = [row for row, job in self._running.items() if job.cancelled]
            self.counts.cancelled += before - len(self._waiting) + len(gone)
        if gone and self._state is not None:
            freed = np.isin(np.arange(self._state.rows), gone)
            self._state = release(self._state, freed)
            for row in gone:
                del self._running[row]

    def _next_batch(self) -> list[Job]:
        """The next waiting jobs that have a slot and are read together."""
        with self._changed:
            free = min(self.slots - len(self._running), READ_AT_ONCE)
            batch: list[Job] = []
            tokens = 0
            while self._waiting and len(batch) < free:
                one = self._waiting[0]
                tokens += len(one.ids)
                if batch and (tokens > READ_TOKENS or one.scored != batch[0].scored):
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _read(self, batch: list[Job]) -> None:
        """Reads prompts, delivers their first tokens, and puts them into rows."""
        try:
            read = self._prefill(batch)
            first = jax.device_get(read.first)
            self.counts.prompts += len(batch)
            self.counts.prompt_tokens += sum(len(job.ids) for job in batch)
            going = [not self._deliver(job, _part(first, i, None)) for i, job in enumerate(batch)]
            kept = [job for job, on in zip(batch, going, strict=True) if on]
            if not kept:
                return
            rows = self._fit(len(kept), max(job.room for job in kept), read)
            assert self._state is not None
            places = np.full(self._read_rows, self._state.rows, np.int32)
            places[np.flatnonzero(going)] = rows
            self._state = insert(self._state, read, places)
            self._running |= dict(zip(rows, kept, strict=True))
        except Exception as error:
            self._give_up(batch, error)
            raise

    def _prefill(self, batch: list[Job]) -> Prefilled:
        rows = [job.ids for job in batch]
        prompts = PackedPrompts.of(rows, self._read_rows, bucket(sum(map(len, rows))))
        return prefill(
            self.model.config,
            batch[0].scored,
            self._params,
            self._pool,
            prompts,
            self._requests(batch, self._read_rows),
            self._penalty,
        )

    def _requests(self, batch: list[Job], count: int) -> Requests:
        """The jobs as arrays of `count` rows."""
        draws = [job.sampling for job in batch] + [Sampling()] * (count - len(batch))
        gates = None
        if self.pool is not None:
            gates = np.zeros((count, self.model.config.layers, self.pool.count), np.float32)
        ends = np.full((count, self._most_ends), NO_TOKEN, np.int32)
        for i, job in enumerate(batch):
            ends[i, : len(job.ends)] = job.ends
            if gates is not None and job.gates is not None:
                gates[i] = job.gates
        most = [job.most for job in batch] + [1] * (count - len(batch))
        values: dict[str, Any] = {
            "gates": gates,
            "most": np.asarray(most, np.int32),
            "ends": ends,
            "temperature": np.asarray([one.temperature for one in draws], np.float32),
            "top_k": np.asarray([one.top_k for one in draws], np.int32),
            "top_p": np.asarray([one.top_p for one in draws], np.float32),
            "seed": np.asarray([one.seed for one in draws], np.uint32),
        }
        return Requests(**values)

    def _fit(self, new: int, room: int = 0, read: Prefilled | None = None) -> list[int]:
        """Gives the state a fitting size, and returns free rows for `new` jobs."""
        running = sorted(self._running)
        # A burst gets its rows at once; an idle server's one request gets a single row.
        wanted = len(running) + new + (len(self._waiting) if new else 0)
        rows = next(n for n in self._row_sizes if n >= min(wanted, self.slots))
        jobs = self._running.values()
        room = room_size(max([job.room for job in jobs] + [room]))
        state = self._state
        if state is None:
            assert read is not None, "there is no state without a running job"
            state = new_slots(read, rows, room)
        else:
            self._oversized = self._oversized + 1 if rows < state.rows and not new else 0
            if rows < state.rows and self._oversized < PATIENCE:
                rows = state.rows
            room = max(room, state.room)
        if (rows, room) != (state.rows, state.room):
            places = np.full(rows, state.rows, np.int32)
            places[: len(running)] = running
            state = resize(state, places, room)
            self._running = {i: self._running[row] for i, row in enumerate(running)}
        self._state = state
        return [row for row in range(state.rows) if row not in self._running][:new]

    def _decode(self) -> None:
        """Generates a chunk in all rows, and delivers it."""
        assert self._state is not None
        began, limit = time.monotonic(), self._chunk()
        scored = any(job.scored for job in self._running.values())
        freed = max(1, self.slots // FREED) if self._waiting else self.slots + 1
        self._state, chosen, counts = decode(
            self.model.config,
            scored,
            self._params,
            self._pool,
            self._state,
            np.int32(limit),
            self._penalty,
            np.int32(freed),
        )
        chosen, counts = jax.device_get((chosen, counts))
        self.counts.chunks += 1
        self._step_seconds = (time.monotonic() - began) / max(1, int(counts.max()))
        for row, job in list(self._running.items()):
            piece = _part(chosen, row, int(counts[row]))
            if self._deliver(job, piece):
                del self._running[row]

    def _chunk(self) -> int:
        """Tokens of the next chunk: one if a step takes long, so that answers flow evenly."""
        if self._step_seconds == 0:
            return AT_ONCE[-1]
        return max([n for n in AT_ONCE if n * self._step_seconds <= CHUNK_SECONDS] + [1])

    def _deliver(self, job: Job, chosen: Choice) -> bool:
        """Delivers tokens up to the end of a job's answer; True if that has come."""
        tokens = [int(one) for one in chosen.tokens]
        self.counts.answer_tokens += len(tokens)
        job.given += len(tokens)
        reason: Reason | None = "length" if job.given >= job.most else None
        if tokens and tokens[-1] in job.ends:
            tokens, reason = tokens[:-1], "stop"
        job.done = reason is not None
        if not job.cancelled:
            scores = _scores(chosen)[: len(tokens)] if job.scored else None
            job.deliver(Piece(tokens, scores, reason))
        return job.done


def _ignore(piece: Piece) -> None:
    """Takes the pieces of a job that only compiles programs."""


def room_size(tokens: int) -> int:
    """Room of the state's rows for requests of at most so many tokens."""
    return bucket(tokens, SMALLEST_ROOM, per_octave=1)


def row_sizes(slots: int) -> list[int]:
    """The numbers of rows that a state may have: 1, 4, 16, ... and all slots."""
    sizes = itertools.takewhile(lambda n: n < slots, (4**i for i in itertools.count()))
    return [*sizes, slots]


def _part(chosen: Choice, row: int, count: int | None) -> Choice:
    """One row's tokens: its one token, or the first `count`."""

    def of(x: Any) -> Any:
        return None if x is None else (x[row : row + 1] if count is None else x[row, :count])

    return Choice(*map(of, chosen))


def _scores(chosen: Choice) -> list[TokenScore]:
    parts = zip(chosen.logprobs, chosen.likeliest, chosen.their_logprobs, strict=True)  # pyright: ignore[reportArgumentType]
    return [
        TokenScore(float(own), [(int(i), float(p)) for i, p in zip(ids, values, strict=True)])
        for own, ids, values in parts
    ]
