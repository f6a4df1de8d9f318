"""Text generation: prefill and decoding in one compiled program.

Prompts are left-padded to a bucketed length, and the cache has room for them and a bucketed number
of new tokens. The number of tokens to generate is an operand, so calls in the same buckets share a
program. Without stop strings and streaming, one call to the device generates everything; with them,
the same loop runs in chunks of CHUNK tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.buckets import bucket, left_pad
from lorage_jax.config import ModelConfig
from lorage_jax.data.templates import check_tokenizer, is_messages
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.fields import require_kind
from lorage_jax.infer.defaults import default_penalty, sampling_for
from lorage_jax.infer.gates import Gates, row_gates
from lorage_jax.infer.place import spread_rows
from lorage_jax.infer.prefixes import Prefix, unread_part
from lorage_jax.infer.prompts import Prompt, is_one, prompt_rows, several
from lorage_jax.infer.sample import Sampling, choose, penalised, row_keys
from lorage_jax.infer.slots import NO_TOKEN
from lorage_jax.infer.steps import next_logits, read_prompts
from lorage_jax.infer.text import GrowingTexts, Stops, continuation
from lorage_jax.models.bits import program_params
from lorage_jax.models.cache import Cache
from lorage_jax.models.experts import Experts, nameless
from lorage_jax.models.model import Model, require_model

CHUNK = 8  # tokens generated between two checks of the text

# Receives all tokens so far and an ended flag per row; returns a flag per row that is finished.
Watch = Callable[[list[list[int]], list[bool]], list[bool]]


@flax.struct.dataclass
class Progress:
    """Tokens generated so far: the first `step` columns of `tokens`; N is the bucketed maximum.

    `seen` marks the tokens of prompt and answer, if there is a repetition penalty.
    """

    tokens: Int[Array | np.ndarray, "B N"]
    done: Bool[Array | np.ndarray, "B"]
    step: Int[Array | np.ndarray, ""]
    seen: Bool[Array | np.ndarray, "B V"] | None = None


def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = (),
    gates: Gates | None = None,
    pool: Experts | None = None,
    stream: Callable[[int, str], Any] | None = None,
) -> str | list[str] | list[int] | list[list[int]]:
    """Generates the continuation of one prompt or of several, without the prompt itself.

    A continuation ends at an eos token, before the first stop string, or after `max_new_tokens`;
    that of messages at the end of the turn, too. A text is read as `tokenizer(text)` reads it,
    special tokens included, so it may be a rendered chat template; for text of others, use
    `infer.chat.chat`, or messages. A model without a tokenizer takes and returns token ids.

    Args:
        prompts: one prompt, or a sequence of them; the result has the same form. A prompt is a
            text, a list of token ids, or a list of messages, which the model's template renders.
        max_new_tokens: the most tokens to generate for each prompt.
        sampling: sampling parameters; the default is greedy decoding, with the repetition penalty
            of the model's generation_config.json if there is one. Of that file, only the penalty
            and the eos tokens count; a warning names what else would change greedy answers.
        temperature, top_k, top_p, seed: the fields of `sampling`, as a shorthand.
        stop: one stop string or several; special tokens may be part of them ("<|im_end|>").
        gates, pool: adapters to apply without merging, as in `forward`.
        stream: called as stream(row, piece) whenever more text is final; the pieces of a row,
            joined, are its result.

    Raises DataError for an empty prompt and ConfigError for an invalid parameter or for a length
    beyond the model's context; WeightsError for text or stop strings without a tokenizer.
    """
    require_model(model)
    one = is_one(prompts)
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    each: Any = [prompts] if one else several(prompts)
    rows = prompt_rows(model, each)
    how: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "sampling": sampling_for(model, sampling, **drawn),
        "gates": gates,
        "pool": pool,
    }
    if model.tokenizer is None and not stop and stream is None:
        ids = generate_tokens(model, rows, **how)
        return ids[0] if one else ids
    turns = [model.template.ends if is_messages(prompt) else () for prompt in each]
    texts = continue_rows(model, rows, stop=stop, stream=stream, row_ends=turns, **how)
    return texts[0] if one else texts


def continue_rows(
    model: Model,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] | None = (),
    gates: Gates | None = None,
    pool: Experts | None = None,
    stream: Callable[[int, str], Any] | None = None,
    ends: Iterable[int] = (),
    row_ends: Sequence[Iterable[int]] | None = None,
) -> list[str]:
    """`generate` on rows of token ids; `ends` and `row_ends` as in `generate_tokens`."""
    check_tokenizer(model.tokenizer, model.source or "this model")
    stops, growing = Stops.of(model.tokenizer, stop), None
    if stops.texts or stream is not None:
        growing = GrowingTexts(model.tokenizer, rows, stops, stream)
    outputs = generate_tokens(
        model,
        rows,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        gates=gates,
        pool=pool,
        watch=None if growing is None else growing.update,
        ends=(*ends, *stops.ids),
        row_ends=row_ends,
    )
    if growing is not None:
        return growing.texts
    return [continuation(model.tokenizer, row, ids) for row, ids in zip(rows, outputs, strict=True)]


def generate_tokens(
    model: Model,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    gates: Gates | None = None,
    pool: Experts | None = None,
    prefixes: Sequence[Prefix] | None = None,
    watch: Watch | None = None,
    ends: Iterable[int] = (),
    row_ends: Sequence[Iterable[int]] | None = None,
) -> list[list[int]]:
    """Like `generate`, on token ids: returns each row's new ids, without the one that ended it.

    `ends` are ids that end any row, besides `eos_ids`, and `row_ends` those of each row; `prefixes`
    stand in front of the rows, one each. `sampling` is by default greedy, with the repetition
    penalty of the model's folder.
    """
    _check(model, rows, max_new_tokens, prefixes)
    if not rows:
        return []
    pool, weights = row_gates(model, gates, pool, len(rows))
    unread, past = (rows, None) if prefixes is None else unread_part(prefixes, rows)
    tokens, mask = left_pad(unread, padded_prompt(max(map(len, unread))))
    shared = {*eos_ids(model), *ends}
    stops = [tuple(sorted({*shared, *own})) for own in row_ends or [()] * len(rows)]
    sampling = sampling or Sampling(repetition_penalty=default_penalty(model))
    if past is None:
        tokens, mask, weights = spread_rows(model.params, tokens, mask, weights)
    padding = {"eos": _eos(stops, len(tokens)), "pad": np.int32(model.config.pad_id or 0)}
    controls = sampling.operands() | padding
    size, params = bucket(max_new_tokens), program_params(model.params)
    limit = np.int32(max_new_tokens if watch is None else min(CHUNK, max_new_tokens))
    started = [model.config, size, params, tokens, mask, controls, nameless(pool), weights, limit]
    if past is not None:
        whole = left_pad(rows, padded_prompt(max(map(len, rows))))
        started += [past, whole if "penalty" in controls else None]
    cache, progress = compiled_start(*started)
    outputs: list[list[int]] = [[] for _ in rows]
    finished = [False] * len(rows)
    while True:
        # Copies: arguments of another kind than in this call would recompile the program.
        progress = jax.tree.map(np.array, jax.device_get(progress))
        step = int(progress.step)
        for i, row in enumerate(progress.tokens[: len(rows)]):
            if not finished[i]:  # a row that `watch` has finished is followed by padding
                outputs[i] = _until(row[:step], stops[i])
        if watch is None:
            return outputs
        last = step >= max_new_tokens
        finished = watch(outputs, [last or bool(done) for done in progress.done[: len(rows)]])
        filled = [*finished, *[True] * (len(progress.done) - len(rows))]
        progress = progress.replace(done=progress.done | np.asarray(filled, bool))
        if last or progress.done.all():
            return outputs
        limit = np.int32(min(step + CHUNK, max_new_tokens))
        cache, progress = compiled_continue(
            model.config, params, cache, progress, controls, nameless(pool), weights, limit
        )


def padded_prompt(length: int) -> int:
    """The number of slots that prompts of at most `length` tokens are padded to."""
    return bucket(length, per_octave=4)


def eos_ids(model: Model) -> tuple[int, ...]:
    """Ids that end a text: the config's, and the tokenizer's eos, which ends training targets."""
    extra = getattr(model.tokenizer, "eos_token_id", None)
    return tuple(sorted({*model.config.eos_ids, *([] if extra is None else [extra])}))


@functools.partial(jax.jit, static_argnums=(0, 1))
def compiled_start(
    config, size, params, tokens, mask, controls, pool, gates, limit, past=None, spoken=None
):
    """Prefills [B, T] tokens, then decodes up to `limit`; the new cache has room for `size`.

    `past` stands in front of the tokens; `spoken` are tokens and mask that a repetition penalty
    counts, if they are not those that are read.
    """
    rows = tokens.shape[0]
    said, real = spoken or (tokens, mask)
    logits, cache = read_prompts(config, params, tokens, mask, size, pool, gates, past)
    progress = Progress(
        tokens=jnp.full((rows, size), controls["pad"], jnp.int32),
        done=jnp.zeros((rows,), bool),
        step=jnp.zeros((), jnp.int32),
        seen=seen_tokens(said, real, logits) if "penalty" in controls else None,
    )
    progress = _append(progress, logits, controls)
    return _decode(config, params, cache, progress, controls, pool, gates, limit)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def compiled_continue(config, params, cache, progress, controls, pool, gates, limit):
    """Decodes further, up to `limit` tokens in total; the cache is donated."""
    return _decode(config, params, cache, progress, controls, pool, gates, limit)


def _decode(
    config: ModelConfig,
    params: dict[str, Any],
    cache: Cache,
    progress: Progress,
    controls: dict[str, Any],
    pool: Experts | None,
    gates: Array | None,
    limit: Int[Array, ""],
) -> tuple[Cache, Progress]:
    """Decodes one token per iteration in every row, up to `limit` or until all rows are done."""

    def wanted(carry):
        _, progress = carry
        return (progress.step < limit) & ~jnp.all(progress.done)

    def turn(carry):
        cache, progress = carry
        newest = jax.lax.dynamic_slice_in_dim(progress.tokens, progress.step - 1, 1, axis=1)
        logits, cache = next_logits(config, params, newest, None, cache, pool, gates)
        return cache, _append(progress, logits, controls)

    return jax.lax.while_loop(wanted, turn, (cache, progress))


def _append(progress: Progress, logits: Float[Array, "B V"], controls: dict[str, Any]) -> Progress:
    """Chooses the next token of every row; finished rows get padding."""
    seen = None if progress.seen is None else jnp.asarray(progress.seen)
    if seen is not None:
        logits = penalised(logits, seen, controls["penalty"])
    draw = {name: controls[name] for name in ("temperature", "top_k", "top_p")}
    keys = row_keys(controls["seed"], logits.shape[0], progress.step)
    token = jnp.where(progress.done, controls["pad"], choose(logits, keys, **draw))
    ended = jnp.any(token[:, None] == controls["eos"], axis=1)
    at = (jnp.int32(0), progress.step)
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return Progress(
        tokens=jax.lax.dynamic_update_slice(progress.tokens, token[:, None], at),
        done=progress.done | ended,
        step=progress.step + 1,
        seen=seen,
    )


def seen_tokens(
    tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], logits: Float[Array, "B V"]
) -> Bool[Array, "B V"]:
    """Marks the tokens of each row's prompt."""
    counts = jnp.zeros(logits.shape, jnp.int32)
    rows = jnp.arange(len(tokens))[:, None]
    return counts.at[rows, tokens].add(mask.astype(jnp.int32)) > 0


def _eos(stops: Sequence[tuple[int, ...]], rows: int) -> np.ndarray:
    """The ids that end a row: [E], or [rows, E] where those of the rows differ.

    The last row's are repeated for rows that fill up the devices.
    """
    if len(set(stops)) == 1:
        return np.asarray(stops[0], np.int32)
    widest = max(map(len, stops))
    table = [[*ends, *[NO_TOKEN] * (widest - len(ends))] for ends in stops]
    return np.asarray(table + table[-1:] * (rows - len(table)), np.int32)


def _until(row: np.ndarray, ends: Sequence[int]) -> list[int]:
    found = np.flatnonzero(np.isin(row, ends))
    return row[: found[0] if found.size else len(row)].tolist()


def _check(
    model: Model,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    prefixes: Sequence[Prefix] | None,
) -> None:
    """Raises if a row exceeds the model's context or has ids outside its vocabulary."""
    require_kind(max_new_tokens, Integral, "max_new_tokens", "a whole number, 1 or more")
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; expected 1 or more.")
    if prefixes is not None and len(prefixes) != len(rows):
        raise ConfigError(f"{len(prefixes)} prefixes for {len(rows)} rows; expected one for each.")
    vocabulary = model.config.vocab_size
    for i, row in enumerate(rows):
        context = whole = model.config.max_positions
        taken = 0 if prefixes is None else prefixes[i].length
        room = whole - taken
        if taken:
            context = f"{whole} less a prefix of {taken}, that is {room}"
        if len(row) == 0:
            raise DataError(f"prompt {i} has no tokens; expected at least one.")
        if min(row) < 0 or max(row) >= vocabulary:
            raise DataError(
                f"prompt {i} has token ids from {min(row)} to {max(row)}; this model's vocabulary "
                f"is 0 to {vocabulary - 1}. Was another tokenizer used?"
            )
        if len(row) >= room:
            raise ConfigError(
                f"prompt {i} alone has {len(row)} tokens; this model's context is {context}, of "
                "which an answer needs 1 or more. Shorten the prompt by at least "
                f"{len(row) + 1 - room}."
            )
        if len(row) + max_new_tokens > room:
            raise ConfigError(
                f"prompt {i} has {len(row)} tokens and max_new_tokens is {max_new_tokens}: "
                f"together {len(row) + max_new_tokens}; this model's context is {context}. Shorten "
                f"the prompt or ask for at most {room - len(row)} tokens."
            )
