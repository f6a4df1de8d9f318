"""Positions, rotary angles and masks of a call of the decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lorage_jax import ops, rotary
from lorage_jax.config import ModelConfig
from lorage_jax.models.cache import Cache, Past


class Branches(flax.struct.PyTreeNode):
    """Layout of rows that hold several texts, or a text followed by several continuations of it.

    A continuation attends to its text and to itself, and its positions go on from the text's.

    Attributes:
        index: 0 in a text, k in its k-th continuation; None if there are no continuations.
        positions: position of each slot within its own text and continuation.
        text: number of each slot's text within its row; None if every row holds one text.

    Example: one question of three tokens with two answers of two tokens, both scored in one row.

        tokens = jnp.array([[q1, q2, q3, a1, a2, b1, b2]])
        branches = Branches(
            index=jnp.array([[0, 0, 0, 1, 1, 2, 2]]),
            positions=jnp.array([[0, 1, 2, 3, 4, 3, 4]]),
        )
        logits = decoder.apply({"params": params}, tokens, branches=branches).logits
    """

    index: Int[Array, "B T"] | None
    positions: Int[Array, "B T"]
    text: Int[Array, "B T"] | None = None


class Masks(flax.struct.PyTreeNode):
    """The slots, of S, that each new slot attends to: in all layers, or in those with a window."""

    all: Bool[Array, "B T S"]
    window: Bool[Array, "B T S"] | None  # None if no layer has a window


class Context(flax.struct.PyTreeNode):
    """Inputs that all layers of one call share."""

    cos: Float[Array, "B T half"] | None  # None if positions are not rotary
    sin: Float[Array, "B T half"] | None
    segments: Int[Array, "B T"]  # number of the slot's text, from 1; 0 for padding
    window_cos: Float[Array, "B T half"] | None  # of sliding layers, if their angles differ
    window_sin: Float[Array, "B T half"] | None
    masks: Masks  # over the new slots, after those of a `Past`
    cached: Masks | None  # over those of the cache
    experts: dict[str, Any] | None  # the pool's arrays, if all layers share them


def make_context(
    config: ModelConfig,
    mask: Bool[Array, "B T"],
    cache: Cache | None,
    past: Past | None,
    branches: Branches | None,
    lead: int,
    experts: dict[str, Any] | None,
) -> tuple[Context, Int[Array, "B T"]]:
    """The context of T new slots, and their positions.

    Positions count a row's real tokens; slots count columns, padding included.

    Args:
        config: the model's configuration.
        mask: True at real slots.
        cache: keys and values of earlier slots.
        past: keys and values of earlier slots; not with a cache.
        branches: the layout of the slots after the first `lead`.
        lead: number of slots in front that are a prefix.
        experts: the pool's arrays, if all layers share them.
    """
    assert cache is None or (past is None and branches is None and not lead), (
        "new slots after a cache are tokens of one text"
    )
    before = _before(cache, past)
    positions = jnp.maximum(before + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    if branches is not None:
        positions = _after(branches, positions, before, lead)
    cos, sin = _rotation(config, positions)
    window_cos, window_sin = _window_rotation(config, positions)

    apart = cache is not None and cache.positions is not None
    seen = partial(_seen, mask, positions, past, branches, lead, apart)
    context = Context(
        cos=cos,
        sin=sin,
        window_cos=window_cos,
        window_sin=window_sin,
        segments=_segments(mask, branches),
        masks=_masks(config, seen),
        cached=None if cache is None else _masks(config, partial(cache.seen, positions)),
        experts=experts,
    )
    return context, positions


def _masks(config: ModelConfig, seen: Callable[[int | None], Array]) -> Masks:
    return Masks(seen(None), seen(config.window) if any(config.sliding) else None)


def _seen(
    mask: Bool[Array, "B T"],
    positions: Int[Array, "B T"],
    past: Past | None,
    branches: Branches | None,
    lead: int,
    apart: bool,
    window: int | None,
) -> Bool[Array, "B T S"]:
    """The mask of new slots over themselves and a `Past`, for layers with this window.

    `apart`: the window counts positions, as there may be padding between slots.
    """
    if past is not None:
        return _after_past(past, mask, positions, branches, window)
    if branches is None and not lead and not apart:
        return ops.attention_mask(mask, jnp.arange(mask.shape[1]), window)
    index, text = (None, None) if branches is None else (branches.index, branches.text)
    if lead and index is not None:
        index = jnp.pad(index, [(0, 0), (lead, 0)])
    return ops.branch_mask(mask, positions, index, window, text)


def _before(cache: Cache | None, past: Past | None) -> Int[Array, "B 1"] | int:
    """The position of each row's next token; 0 where every text of a row has its own."""
    if cache is not None:
        return cache.next_positions
    return 0 if past is None or past.text is not None else past.next_positions


def _rotation(
    config: ModelConfig, positions: Int[Array, "B T"]
) -> tuple[Array | None, Array | None]:
    """Cosine and sine of the rotary angles; None if positions are learned."""
    if config.position_offset is not None:
        return None, None
    scaling = config.rope_scaling
    frequencies = rotary.frequencies(config.rotary_dim, config.rope_theta, scaling)
    factor = 1.0 if scaling is None else scaling.attention_factor
    return rotary.table(positions, frequencies, factor)


def _window_rotation(
    config: ModelConfig, positions: Int[Array, "B T"]
) -> tuple[Array | None, Array | None]:
    """The same for sliding layers; None if their angles are those of all layers."""
    if config.local_rope_theta is None or not any(config.sliding):
        return None, None
    frequencies = rotary.frequencies(config.rotary_dim, config.local_rope_theta, None)
    return rotary.table(positions, frequencies)


def _after(
    branches: Branches, positions: Int[Array, "B T"], before: Any, lead: int
) -> Int[Array, "B T"]:
    """Positions of branches after `before` tokens and the first `lead` slots of `positions`."""
    if not lead:
        return branches.positions if isinstance(before, int) else branches.positions + before
    assert branches.text is None, "a prefix stands in front of one text"
    return jnp.concatenate([positions[:, :lead], branches.positions + before + lead], axis=1)


def _after_past(
    past: Past,
    mask: Bool[Array, "B T"],
    positions: Int[Array, "B T"],
    branches: Branches | None,
    window: int | None,
) -> Bool[Array, "B T S"]:
    """The mask of new slots over those of a `Past`, in front, and themselves."""
    index, text = (None, None) if branches is None else (branches.index, branches.text)
    assert (text is None) == (past.text is None), "the texts of both, or of neither, are numbered"
    count, length = past.valid.shape[1], mask.shape[1]
    if index is not None:
        index = jnp.pad(index, [(0, 0), (count, 0)])
    if text is not None and past.text is not None:
        text = jnp.concatenate([past.text, text], axis=1)
    valid = jnp.concatenate([past.valid, mask], axis=1)
    positions = jnp.concatenate([past.positions, positions], axis=1)
    asking = count + jnp.arange(length)
    return ops.branch_mask(valid, positions, index, window, text, query_slots=asking)


def _segments(mask: Bool[Array, "B T"], branches: Branches | None) -> Int[Array, "B T"]:
    if branches is None or branches.text is None:
        return mask.astype(jnp.int32)
    return jnp.where(mask, branches.text + 1, 0)
