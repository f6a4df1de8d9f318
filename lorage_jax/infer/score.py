"""Log-likelihoods of continuations given their contexts.

The continuations of one context share a row, [context | c1 | c2 | ...]: each attends to the context
and to itself (`ops.branch_mask`), with positions counted from the context's end. A question with
four choices is thus read once, in one pass. What many contexts begin with, such as the solved
samples of a task, is read once for all of them (`shared.py`). Rows are sorted by length and run in
batches of about `batch_tokens` tokens with bucketed shapes, so that few programs are compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lorage_jax.buckets import bucket
from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.fields import require
from lorage_jax.files.journal import Journal, request_key
from lorage_jax.hf.family import to_text
from lorage_jax.infer.gates import Gates, distinct_gates, row_gates
from lorage_jax.infer.place import mesh_of, placed
from lorage_jax.infer.prefixes import Prefix, past_of
from lorage_jax.infer.shared import read_beginnings
from lorage_jax.models.bits import program_params
from lorage_jax.models.cache import Past
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder, head_logits
from lorage_jax.models.experts import Experts, nameless
from lorage_jax.models.model import Model
from lorage_jax.progress import progress
from lorage_jax.sharding import ShardingRules

BATCH_TOKENS = 8192
CPU_BATCH_TOKENS = 1024  # the activations of more leave its caches, and rows are padded more
LOGITS_AT_ONCE = 1 << 26  # float32 numbers: a quarter of a GiB
LONGEST_ROW = 1024  # tokens; continuations beyond this start another row for the same context

Request = tuple[Sequence[int], Sequence[int]]  # token ids of context and continuation


class Score(NamedTuple):
    """The score of one continuation."""

    loglikelihood: float  # sum over the continuation's tokens, in nats
    greedy: bool  # every token is the most likely one


@dataclass
class Row:
    """One context and the continuations scored after it."""

    context: Sequence[int]  # what is read of it: without the tokens of a prefix
    gates: int  # index into the distinct gates
    front: tuple[Prefix, int] | None = None  # a prefix, and how many of the context's tokens it has
    asked: list[int] = field(default_factory=list)  # indices of the requests
    continuations: list[Sequence[int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The number of slots; the last token of a continuation is predicted but not read."""
        return len(self.context) + sum(len(c) - 1 for c in self.continuations)

    @property
    def slots(self) -> int:
        """The number of slots in front of its own."""
        return 0 if self.front is None else self.front[0].slots

    @property
    def scored(self) -> int:
        """The number of tokens to score."""
        return sum(map(len, self.continuations))


def score(
    model: Model,
    requests: Sequence[Request],
    *,
    gates: Gates | None = None,
    pool: Experts | None = None,
    prefixes: Sequence[Prefix] | None = None,
    batch_tokens: int | None = None,
    journal: Journal | None = None,
    label: str = "scoring",
) -> list[Score]:
    """Scores every (context, continuation) of token ids, in the order of the requests.

    A request longer than the model's context is cut at its start (see `fit`).

    Args:
        requests: (context, continuation) pairs of token ids, each with at least one token.
        gates: adapters to apply without merging: one Card for all requests, or one Card or [L, E]
            array per request; requests with different adapters share batches.
        pool: the experts that `gates` weight, `gen.pool` of the generator.
        prefixes: keys and values that stand in front of the requests, one each.
        batch_tokens: the approximate number of tokens per batch; by default, what suits the
            devices (`default_batch_tokens`).
        journal: stored results; requests found in it are not run again, new ones are added.
        label: the text of the progress bar.

    Raises DataError for an empty context or continuation or for token ids outside the vocabulary.

    Example:
        encode = lambda text: edge.tokenizer(text, add_special_tokens=False)["input_ids"]
        context = encode("The capital of France is")
        paris, rome = score(edge, [(context, encode(" Paris")), (context, encode(" Rome"))])
        print(paris.loglikelihood - rome.loglikelihood)
    """
    allowed = batch_tokens is None or batch_tokens >= 1
    require(allowed, f"batch_tokens is {batch_tokens}; expected 1 or more.")
    fronts = [None] * len(requests) if prefixes is None else list(prefixes)
    fitted = _fitted(model, requests, fronts)
    kinds, which = distinct_gates(gates, len(requests))
    pool, stacked = row_gates(model, kinds, pool, len(kinds) if kinds is not None else 1)
    stacked = None if stacked is None else np.asarray(stacked)
    journal = Journal() if journal is None else journal
    base = identity(model, pool)
    marks = [b""] if stacked is None else [g.tobytes() for g in stacked]
    keys = [
        request_key("score", base, marks[g], *_marks(pair, front))
        for pair, g, front in zip(fitted, which, fronts, strict=True)
    ]
    todo = {key: i for i, key in reversed(list(enumerate(keys))) if journal.get(key) is None}
    asked = sorted(todo.values())
    if prefixes is None and gates is None:
        fronts = read_beginnings(model, [tuple(context) for context, _ in fitted], asked)
    rows = _rows([(i, *fitted[i], which[i], fronts[i]) for i in asked])
    if rows:
        run = _Runner(model, nameless(pool), stacked, batch_tokens)
        with progress(label, len(todo) // journal.processes) as advance, journal.exchanged():
            for found in _scored(run, journal.part(run.batches(rows))):
                journal.add({keys[i]: value for i, value in found.items()})
                advance(len(found))
    return [Score(*journal.get(key)) for key in keys]


def default_batch_tokens(platform: str) -> int:
    """Tokens per batch for the devices of a platform ("cpu", "gpu", "tpu")."""
    return CPU_BATCH_TOKENS if platform == "cpu" else BATCH_TOKENS


def _fitted(
    model: Model, requests: Sequence[Request], fronts: Sequence[Prefix | None]
) -> list[Request]:
    """The requests, each cut to the room after its prefix."""
    if len(fronts) != len(requests):
        raise ConfigError(
            f"{len(fronts)} prefixes for {len(requests)} requests; expected one each."
        )
    found, vocabulary = [], model.config.vocab_size
    for i, ((context, continuation), front) in enumerate(zip(requests, fronts, strict=True)):
        room = model.config.max_positions - (0 if front is None else front.length)
        found.append(fit(context, continuation, room, i, vocabulary)[:2])
    return found


def _marks(request: Request, front: Prefix | None) -> list[bytes | str]:
    """The parts of a request's key that tell it from others."""
    marks: list[bytes | str] = [np.asarray(part, np.int32).tobytes() for part in request]
    return marks if front is None else [*marks, front.identity]


def fit(
    context: Sequence[int], continuation: Sequence[int], room: int, index: int, vocabulary: int
) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Cuts the start of a request to `room` positions: (context, continuation, was it cut).

    Like lm-eval, keeps `room` + 1 tokens, because the last one is only predicted. A continuation
    of more than `room` tokens, where lm-eval fails, is scored on its last `room` tokens.
    """
    context, continuation = tuple(context), tuple(continuation)
    if not context or not continuation:
        what = "context" if not context else "continuation"
        raise DataError(f"request {index} has an empty {what}; expected at least one token.")
    low, high = min(*context, *continuation), max(*context, *continuation)
    if low < 0 or high >= vocabulary:
        raise DataError(
            f"request {index} has token ids from {low} to {high}; this model's vocabulary is 0 to "
            f"{vocabulary - 1}. Was another tokenizer used?"
        )
    whole = context + continuation
    kept, asked = whole[-(room + 1) :], min(len(continuation), room)
    return kept[:-asked], kept[-asked:], len(kept) < len(whole)


def identity(model: Model, pool: Experts | None = None) -> str:
    """A hash of all that determines a model's answers to given inputs.

    It covers the weights, with what was merged into them, config, dtype and experts.
    """
    experts = "" if pool is None else pool.generator
    return request_key(model.fingerprint, to_text(model.config), str(model.dtype), "", experts)


def _rows(
    requests: Sequence[tuple[int, Sequence[int], Sequence[int], int, Prefix | None]],
) -> list[Row]:
    """Groups requests with the same context, gates and prefix into rows, longest rows first."""
    rows: list[Row] = []
    open_rows: dict[Any, Row] = {}
    for index, context, continuation, gates, prefix in requests:
        front = None if prefix is None else (prefix, prefix.shared(context))
        context = context if front is None else context[front[1] :]
        row = open_rows.get((context, gates, front))
        if row is None or row.length + len(continuation) > max(
            LONGEST_ROW, len(context) + len(continuation)
        ):
            row = open_rows[context, gates, front] = Row(context, gates, front)
            rows.append(row)
        row.asked.append(index)
        row.continuations.append(continuation)
    # Longest first: the estimate of the time left is never too low, and if memory runs out, it does
    # so in the first batch.
    return sorted(rows, key=lambda row: (-row.length, row.context, row.gates))


def _pipelined(run: _Runner, batches: Iterable[list[Row]]) -> Iterator[tuple[list[Row], Any]]:
    """Yields each batch with its outputs; the device runs one while the host reads the last."""
    waiting: tuple[list[Row], Any] | None = None
    for batch in batches:
        started = (batch, run(batch))
        if waiting is not None:
            yield waiting[0], jax.device_get(waiting[1])
        waiting = started
    if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])


def _scored(run: _Runner, batches: Iterable[list[Row]]) -> Iterator[dict[int, list]]:
    """Yields {request: [log-likelihood, greedy]} of one batch after the other."""
    for batch, outputs in _pipelined(run, batches):
        yield {
            i: value
            for row, logprobs, likeliest in zip(batch, *outputs, strict=False)
            for i, value in _read(row, logprobs, likeliest)
        }


def _read(row: Row, logprobs: np.ndarray, likeliest: np.ndarray) -> Iterator[tuple[int, list]]:
    """Yields (request, [log-likelihood, greedy]) for the continuations of a finished row."""
    start = 0
    for index, continuation in zip(row.asked, row.continuations, strict=True):
        part = slice(start, start + len(continuation))
        yield index, [float(logprobs[part].sum(dtype=np.float64)), bool(likeliest[part].all())]
        start += len(continuation)


class _Runner:
    """Runs batches of rows on the device: holds the compiled program, weights and shardings."""

    def __init__(
        self,
        model: Model,
        pool: Experts | None,
        gates: np.ndarray | None,
        batch_tokens: int | None,
    ):
        mesh = mesh_of(model.params)
        self.params, self.pool = program_params(placed(model.params, mesh)), placed(pool, mesh)
        platform = mesh.devices.flat[0].platform
        self.gates, self.batch_tokens = gates, batch_tokens or default_batch_tokens(platform)
        self.rows = NamedSharding(mesh, PartitionSpec(ShardingRules().batch))
        self.devices = mesh.shape["data"] * mesh.shape["fsdp"]
        leaves, tree = jax.tree.flatten((self.params, self.pool))
        shardings = tuple(leaf.sharding for leaf in leaves)
        self.program = functools.partial(
            _program, model.config, tree, shardings, self.rows, gates is not None
        )

    def batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Consecutive rows that run together; those with something in front are apart."""
        for prefixed in (False, True):
            part, start = [row for row in rows if (row.front is not None) == prefixed], 0
            while start < len(part):
                count = self._most(bucket(part[start].length, per_octave=4), part[start].slots)
                yield part[start : start + count]
                start += count

    def _most(self, length: int, slots: int) -> int:
        """The number of rows of this length, after so many slots, in a full batch.

        The slots in front take memory alone, so there may be twice as many of all.
        """
        rows = min(self.batch_tokens // length, 2 * self.batch_tokens // (length + slots))
        return max(1, rows // self.devices) * self.devices

    def __call__(self, batch: Sequence[Row]) -> tuple[jax.Array, jax.Array]:
        """Returns log-probabilities [R, M] of the scored tokens, and if each is the most likely."""
        length = bucket(batch[0].length, per_octave=4)
        scored = bucket(max(row.scored for row in batch), smallest=8, per_octave=1)
        # The last batch, which may be short, gets a power of two of rows per device: this adds few
        # programs.
        count = bucket(-(-len(batch) // self.devices), smallest=1, per_octave=1) * self.devices
        count = min(count, self._most(length, batch[0].slots))
        arrays = {
            "tokens": np.zeros((count, length), np.int32),
            "mask": np.zeros((count, length), bool),
            "branch": np.zeros((count, length), np.int32),
            "positions": np.zeros((count, length), np.int32),
            "at": np.zeros((count, scored), np.int32),
            "targets": np.zeros((count, scored), np.int32),
        }
        for number, row in enumerate(batch):
            _fill({name: array[number] for name, array in arrays.items()}, row)
        gates = None
        if self.gates is not None:
            gates = np.zeros((count, *self.gates.shape[1:]), np.float32)
            gates[: len(batch)] = self.gates[[row.gates for row in batch]]
        fronts = [row.front for row in batch if row.front is not None]
        past = past_of(fronts + fronts[-1:] * (count - len(fronts))) if fronts else None
        program = self.program(past is not None)
        return program(self.params, self.pool, gates, past, *arrays.values())


def _fill(arrays: dict[str, np.ndarray], row: Row) -> None:
    """Fills one row of every array: the context, then each continuation but its last token."""
    size = end = len(row.context)
    arrays["tokens"][:size] = row.context
    arrays["positions"][:size] = np.arange(size)
    scored = 0
    for number, tokens in enumerate(row.continuations, start=1):
        read = slice(end, end + len(tokens) - 1)
        arrays["tokens"][read] = tokens[:-1]
        arrays["branch"][read] = number
        arrays["positions"][read] = np.arange(size, size + len(tokens) - 1)
        asked = slice(scored, scored + len(tokens))
        # The end of the context predicts the first token; each token predicts the next one.
        arrays["at"][asked] = [size - 1, *range(read.start, read.stop)]
        arrays["targets"][asked] = tokens
        end, scored = read.stop, asked.stop
    arrays["mask"][:end] = True


@functools.lru_cache(maxsize=16)
def _program(
    config: ModelConfig, tree, shardings, rows: NamedSharding, gated: bool, prefixed: bool
):
    params, pool = jax.tree.unflatten(tree, shardings)
    second = NamedSharding(rows.mesh, PartitionSpec(None, *rows.spec))
    past = Past(second, second, rows, rows) if prefixed else None  # pyright: ignore[reportArgumentType]
    return jax.jit(
        functools.partial(_score, config),
        in_shardings=(params, pool, rows if gated else None, past, *[rows] * 6),
        out_shardings=(rows, rows),
    )


def _score(config, params, pool, gates, past, tokens, mask, branch, positions, at, targets):
    """Scores a batch; the head runs on part of the slots at a time, as [B, M, V] may not fit."""
    hidden = (
        Decoder(config)
        .apply(
            {"params": params},
            tokens,
            mask,
            gates=gates,
            pool=pool,
            past=past,
            branches=Branches(branch, positions),
            at=at,
            head=False,
        )
        .hidden
    )
    count, scored = targets.shape
    parts = bucket(-(-count * scored * config.vocab_size // LOGITS_AT_ONCE), 1, per_octave=1)
    parts = min(parts, scored)  # both are powers of two

    def split(x):
        return jnp.moveaxis(x.reshape(count, parts, scored // parts, *x.shape[2:]), 1, 0)

    def part(inputs):
        x, wanted = inputs
        logits = head_logits(config, params, x)
        chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        logprobs = chosen - jax.nn.logsumexp(logits, axis=-1)
        return logprobs, jnp.argmax(logits, axis=-1) == wanted

    outputs = jax.lax.map(part, (split(hidden), split(targets)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(count, scored) for x in outputs)
