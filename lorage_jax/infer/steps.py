"""The two steps of generation: reading prompts into a cache, and going on by a token."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import ModelConfig
from lorage_jax.models.bits import cache_dtype
from lorage_jax.models.cache import Cache, Past, new_cache
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Experts


def read_prompts(
    config: ModelConfig,
    params: dict[str, Any],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None,
    room: int,
    pool: Experts | None,
    gates: Array | None,
    past: Past | None = None,
) -> tuple[Float[Array, "B V"], Cache]:
    """The logits after the last token, and a cache with `past`, the tokens and `room` for more."""
    output = Decoder(config).apply(
        {"params": params}, tokens, mask, gates=gates, pool=pool, past=past, last=True, keys=True
    )
    assert output.logits is not None and output.past is not None
    rows, length = tokens.shape
    cache = new_cache(config, rows, length + room, cache_dtype(params), past)
    return output.logits[:, 0], cache.extended(output.past)


def next_logits(
    config: ModelConfig,
    params: dict[str, Any],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None,
    cache: Cache,
    pool: Experts | None,
    gates: Array | None,
) -> tuple[Float[Array, "B V"], Cache]:
    """The logits after the last token, and the cache with the new keys and values."""
    output = Decoder(config).apply(
        {"params": params}, tokens, mask, gates=gates, pool=pool, cache=cache, last=True
    )
    assert output.logits is not None and output.cache is not None
    return output.logits[:, 0], output.cache
