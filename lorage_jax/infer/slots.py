"""Slots: rows of one batch that start and end at different times (continuous batching).

Three programs: `prefill` reads prompts and chooses their first tokens, `insert` puts them into
free rows of a `Slots` state, `decode` generates a few tokens in all rows. Every row has its own
length, gates, sampling and end, so requests for different cards share each step. `resize` moves
the rows into a state of another size.

A row generates what a request gets by itself: its tokens do not depend on the other rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from lorage_jax.config import ModelConfig
from lorage_jax.infer.sample import choose, penalised, request_keys
from lorage_jax.infer.steps import next_logits
from lorage_jax.models.bits import cache_dtype, stored
from lorage_jax.models.cache import Cache
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Experts

CHUNK = 8  # the most tokens per row of one `decode`
ALTERNATIVES = 20  # likeliest tokens that are reported per token, where they are asked for
NO_TOKEN = -1  # fills up a row's end tokens


class Requests(flax.struct.PyTreeNode):
    """The tasks of P rows: gates, lengths, ends and sampling.

    Attributes:
        gates: weights of the pool's experts; zeros are the base. None without a pool.
        most: the most tokens to generate.
        ends: token ids that end a row, filled up with NO_TOKEN.
        temperature, top_k, top_p, seed: the fields of `Sampling`.
    """

    gates: Float[Array, "P L E"] | None
    most: Int[Array, "P"]
    ends: Int[Array, "P M"]
    temperature: Float[Array, "P"]
    top_k: Int[Array, "P"]
    top_p: Float[Array, "P"]
    seed: UInt32[Array, "P"]

    def choose(self, logits: Float[Array, "P V"], steps: Int[Array, "P"]) -> Int[Array, "P"]:
        """The next token of every row, of which `steps` are generated already."""
        keys = request_keys(self.seed, steps)
        how = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return choose(logits, keys, **how)


class Slots(flax.struct.PyTreeNode):
    """The state of B rows with room for S tokens each.

    Attributes:
        cache: keys and values, with one length per row.
        newest: each row's last token, which is not in the cache yet.
        left: tokens that each row may still generate; 0 marks a free row.
        step: tokens that each row has generated.
        requests: what each row is to generate.
        seen: tokens of prompt and answer, if there is a repetition penalty.
    """

    cache: Cache
    newest: Int[Array, "B"]
    left: Int[Array, "B"]
    step: Int[Array, "B"]
    requests: Requests
    seen: Bool[Array, "B V"] | None = None

    @property
    def rows(self) -> int:
        """The number of rows, B."""
        return self.cache.valid.shape[0]

    @property
    def room(self) -> int:
        """The most tokens of a row, prompt and answer together, S."""
        return self.cache.valid.shape[1]


class Choice(NamedTuple):
    """Chosen tokens with their log-probabilities before temperature and filters.

    The fields but `tokens` are None where nobody asked for them.
    """

    tokens: Int[Array, "B *T"]
    logprobs: Float[Array, "B *T"] | None
    likeliest: Int[Array, "B *T N"] | None  # ids, the likeliest first
    their_logprobs: Float[Array, "B *T N"] | None


class PackedPrompts(flax.struct.PyTreeNode):
    """P prompts one after another in one row of T slots, padded at its end.

    Attributes:
        tokens: the token ids.
        text: the number of each slot's prompt; P at padding.
        positions: of each slot within its prompt.
        lengths: tokens of each prompt; 0: there is none of this number.
    """

    tokens: Int[Array, "T"]
    text: Int[Array, "T"]
    positions: Int[Array, "T"]
    lengths: Int[Array, "P"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], count: int, size: int) -> PackedPrompts:
        """Packs token ids; there is room for `count` prompts and `size` tokens."""
        lengths = [len(row) for row in rows]
        used = sum(lengths)
        tokens, text, positions = np.zeros((3, size), np.int32)
        text[used:] = count
        tokens[:used] = [token for row in rows for token in row]
        text[:used] = np.repeat(np.arange(len(rows)), lengths)
        positions[:used] = [at for length in lengths for at in range(length)]
        padded = np.asarray([*lengths, *[0] * (count - len(rows))], np.int32)
        arrays: Any = (tokens, text, positions, padded)
        return cls(*arrays)


class Prefilled(flax.struct.PyTreeNode):
    """P prompts that were read: keys and values of all their tokens, and the first new ones."""

    k: Float[Array, "L T K H"]
    v: Float[Array, "L T K H"]
    prompts: PackedPrompts
    first: Choice
    requests: Requests
    seen: Bool[Array, "P V"] | None


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(
    config: ModelConfig,
    logprobs: bool,
    params: dict[str, Any],
    pool: Experts | None,
    prompts: PackedPrompts,
    requests: Requests,
    penalty: Float[Array, ""] | None = None,
) -> Prefilled:
    """Reads prompts, each by itself, and chooses the first token after each.

    Args:
        config: the model's.
        logprobs: return log-probabilities.
        params: parameters as of `program_params`.
        pool: the experts that the requests' gates combine.
        prompts: the prompts.
        requests: what to generate after each.
        penalty: a repetition penalty of all rows; None: none.
    """
    text, count = prompts.text, len(prompts.lengths)
    mask = text < count
    gates = requests.gates
    if gates is not None:
        gates = gates[jnp.minimum(text, count - 1)][None]
    ends = jnp.maximum(jnp.cumsum(prompts.lengths) - 1, 0)
    output = Decoder(config).apply(
        {"params": params},
        prompts.tokens[None],
        mask[None],
        gates=gates,
        pool=pool,
        branches=Branches(None, prompts.positions[None], text[None]),
        at=ends[None],
        keys=True,
    )
    assert output.logits is not None and output.past is not None
    logits, seen = output.logits[0], None
    if penalty is not None:
        seen = jnp.zeros(logits.shape, bool).at[text, prompts.tokens].set(True, mode="drop")
    first, seen = _choice(requests, logits, jnp.zeros(count, jnp.int32), seen, penalty, logprobs)
    dtype = cache_dtype(params)
    k, v = (stored(x[:, 0], dtype) for x in (output.past.k, output.past.v))
    return Prefilled(k, v, prompts, first, requests, seen)


def new_slots(prefilled: Prefilled, rows: int, room: int) -> Slots:
    """Free slots for requests as those that were read; `room` is in tokens per row."""

    def empty(x: Array) -> Array:
        return jnp.zeros((rows, *x.shape[1:]), x.dtype)

    layers, _, heads, size = prefilled.k.shape
    shape = (layers, rows, heads, room, size)
    return Slots(
        cache=Cache(
            k=jnp.zeros(shape, prefilled.k.dtype),
            v=jnp.zeros(shape, prefilled.v.dtype),
            valid=jnp.zeros((rows, room), bool),
            length=jnp.zeros(rows, jnp.int32),
        ),
        newest=jnp.zeros(rows, jnp.int32),
        left=jnp.zeros(rows, jnp.int32),
        step=jnp.zeros(rows, jnp.int32),
        requests=jax.tree.map(empty, prefilled.requests),
        seen=None if prefilled.seen is None else empty(prefilled.seen),
    )


@functools.partial(jax.jit, donate_argnums=0)
def insert(slots: Slots, prefilled: Prefilled, rows: Int[Array, "P"]) -> Slots:
    """Puts prompts that were read into rows of the state, which is donated.

    A row number beyond the last row leaves that prompt out. No prompt may be longer than the
    state's room.
    """
    cache, prompts = slots.cache, prefilled.prompts
    lengths = prompts.lengths
    places = jnp.append(rows, slots.rows)[prompts.text]  # of every token; padding has none

    def put(old: Array, new: Array) -> Array:
        return old.at[rows].set(new, mode="drop")

    def read(old: Array, new: Array) -> Array:
        return old.at[:, places, :, prompts.positions].set(new.swapaxes(0, 1), mode="drop")

    requests, first = prefilled.requests, prefilled.first.tokens
    left = jnp.where(_ended(first, requests), 0, requests.most - 1)
    return Slots(
        cache=Cache(
            k=read(cache.k, prefilled.k),
            v=read(cache.v, prefilled.v),
            valid=put(cache.valid, jnp.arange(slots.room) < lengths[:, None]),
            length=put(cache.length, lengths),
        ),
        newest=put(slots.newest, first),
        left=put(slots.left, left),
        step=put(slots.step, jnp.ones_like(lengths)),
        requests=jax.tree.map(put, slots.requests, requests),
        seen=None if slots.seen is None else put(slots.seen, prefilled.seen),  # pyright: ignore[reportArgumentType]
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def decode(
    config: ModelConfig,
    logprobs: bool,
    params: dict[str, Any],
    pool: Experts | None,
    slots: Slots,
    limit: Int[Array, ""],
    penalty: Float[Array, ""] | None = None,
    freed: Int[Array, ""] | None = None,
) -> tuple[Slots, Choice, Int[Array, "B"]]:
    """Generates up to `limit` (at most CHUNK) tokens in every row that is not free.

    It stops before that once `freed` rows have ended, as others may wait for them. The state is
    donated. Returns the new one, the tokens [B, CHUNK], and how many of them each row has; the last
    one is an end token where the row ended.
    """
    begun = slots.step

    def wanted(carry):
        state, _, done = carry
        going = (done < limit) & jnp.any(state.left > 0)
        if freed is None:
            return going
        return going & (jnp.sum((slots.left > 0) & (state.left == 0)) < freed)

    def turn(carry):
        slots, chosen, done = carry
        slots, new = _step(config, logprobs, params, pool, slots, penalty)
        chosen = jax.tree.map(lambda all, one: all.at[:, done].set(one), chosen, new)
        return slots, chosen, done + 1

    def buffer(x):
        return jnp.zeros((x.shape[0], CHUNK, *x.shape[1:]), x.dtype)

    step = functools.partial(_step, config, logprobs)
    one = jax.eval_shape(step, params, pool, slots, penalty)[1]
    carry = (slots, jax.tree.map(buffer, one), jnp.zeros((), jnp.int32))
    slots, chosen, _ = jax.lax.while_loop(wanted, turn, carry)
    return slots, chosen, slots.step - begun


def _step(config, logprobs, params, pool, slots: Slots, penalty) -> tuple[Slots, Choice]:
    """Reads the newest token of every row that is not free, and chooses the next one."""
    requests, running = slots.requests, slots.left > 0
    logits, cache = next_logits(
        config,
        params,
        slots.newest[:, None],
        running[:, None],
        slots.cache,
        pool,
        requests.gates,
    )
    new, seen = _choice(requests, logits, slots.step, slots.seen, penalty, logprobs)
    left = jnp.where(running & ~_ended(new.tokens, requests), slots.left - 1, 0)
    state = Slots(
        cache=cache,
        newest=jnp.where(running, new.tokens, slots.newest),
        left=left,
        step=slots.step + running,
        requests=requests,
        seen=seen,
    )
    return state, new


def _choice(
    requests: Requests, logits: Float[Array, "P V"], steps: Int[Array, "P"], seen, penalty, logprobs
) -> tuple[Choice, Bool[Array, "P V"] | None]:
    """The next tokens, and the tokens seen with them."""
    allowed = logits if penalty is None else penalised(logits, seen, penalty)
    tokens = requests.choose(allowed, steps)
    if seen is not None:
        seen = seen.at[jnp.arange(len(tokens)), tokens].set(True)
    if not logprobs:
        return Choice(tokens, None, None, None), seen
    values = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    best, ids = jax.lax.top_k(values, min(ALTERNATIVES, values.shape[-1]))
    own = jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]
    return Choice(tokens, own, ids, best), seen


def _ended(tokens: Int[Array, "P"], requests: Requests) -> Bool[Array, "P"]:
    return jnp.any(tokens[:, None] == requests.ends, axis=1)


@functools.partial(jax.jit, donate_argnums=0)
def release(slots: Slots, rows: Bool[Array, "B"]) -> Slots:
    """Frees rows before their end; the state is donated."""
    return slots.replace(left=jnp.where(rows, 0, slots.left))


@functools.partial(jax.jit, static_argnums=2)
def resize(slots: Slots, rows: Int[Array, "N"], room: int) -> Slots:
    """Moves the given rows into a state of N rows with `room` tokens each.

    A row number beyond the last row gives a free row. No row may have more tokens than `room`.
    """

    def take(x: Array, axis: int = 0) -> Array:
        return jnp.take(x, rows, axis=axis, mode="fill", fill_value=0)

    def fit(x: Array, axis: int) -> Array:
        x = jax.lax.slice_in_dim(x, 0, min(room, x.shape[axis]), axis=axis)
        return jnp.pad(x, [(0, room - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    cache = slots.cache
    moved = jax.tree.map(take, slots.replace(cache=None))
    return moved.replace(
        cache=Cache(
            k=fit(take(cache.k, 1), 3),
            v=fit(take(cache.v, 1), 3),
            valid=fit(take(cache.valid), 1),
            length=take(cache.length),
        )
    )
