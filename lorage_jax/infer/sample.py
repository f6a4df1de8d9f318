"""Chooses the next token from float32 logits: greedy, temperature, top-k and top-p (nucleus).

Every parameter is an operand rather than a static argument, so changing one does not recompile. It
is a scalar, or an array with one value per row.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from lorage_jax.errors import ConfigError
from lorage_jax.fields import require_kind

COLDEST = 1e-6  # lower bound on the divisor: a smaller temperature would overflow float32


class SamplingError(ConfigError):
    """A value that a sampling parameter cannot have; `field` is its name."""

    def __init__(self, field: str, value: Any, expected: str):
        super().__init__(f"{field} is {value}; expected {expected}.")
        self.field = field


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, applied in the order repetition penalty, temperature, top-k, top-p."""

    temperature: float = 0.0  # 0 is greedy and ignores the other fields
    top_k: int = 0  # keep the k most probable tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of tokens with at least this total probability
    seed: int = 0
    repetition_penalty: float = 1.0  # makes tokens of prompt and answer less likely; also greedily

    def __post_init__(self):
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not isinstance(value := getattr(self, name), Real):
                raise SamplingError(name, repr(value), "a number")
        for name in ("top_k", "seed"):
            if not isinstance(value := getattr(self, name), Integral):
                raise SamplingError(name, repr(value), "a whole number")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            expected = "more than 0 (1: none)"
            raise SamplingError("repetition_penalty", self.repetition_penalty, expected)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            expected = "0 (greedy) or a positive number"
            raise SamplingError("temperature", self.temperature, expected)
        if not 0 <= self.top_k < 2**31:
            raise SamplingError("top_k", self.top_k, "0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise SamplingError("top_p", self.top_p, "more than 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise SamplingError("seed", self.seed, f"0 to {2**32 - 1}")

    def operands(self) -> dict[str, Any]:
        """The fields as scalars of fixed dtypes, the keyword arguments of `choose` and the seed.

        A penalty is there only if it has an effect, so that others need no program of their own.
        """
        penalty = {"penalty": np.float32(self.repetition_penalty)}
        return {
            **(penalty if self.repetition_penalty != 1 else {}),
            "temperature": np.float32(self.temperature),
            "top_k": np.int32(self.top_k),
            "top_p": np.float32(self.top_p),
            "seed": np.uint32(self.seed),
        }


def sampling_of(sampling: Sampling | None, **fields: Any) -> Sampling:
    """Returns `sampling`, or builds it from those of its fields that are not None.

    Raises ConfigError if both are given, or if `sampling` is not a Sampling.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if sampling is None:
        return Sampling(**given)
    known = "a Sampling, as lorage_jax.infer.sample.Sampling(temperature=0.7)"
    require_kind(sampling, Sampling, "sampling", known)
    if given:
        raise ConfigError(
            f"both sampling= and {', '.join(given)}= were given; put everything into sampling=, "
            f"as {dataclasses.replace(sampling, **given)}."
        )
    return sampling


def row_keys(
    seed: UInt32[Array, ""], rows: int, step: Int[Array | np.ndarray, ""]
) -> Key[Array, "B"]:
    """Returns one key per row for token number `step`, independent of the other rows."""
    key = jax.random.key(seed)
    at = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), step))
    return at(jnp.arange(rows, dtype=jnp.uint32))


def request_keys(seeds: UInt32[Array, "B"], steps: Int[Array, "B"]) -> Key[Array, "B"]:
    """Returns one key per row, whose seeds and token numbers are its own.

    A row draws as the only row of a batch with its seed would, wherever it stands.
    """
    return jax.vmap(lambda seed, step: row_keys(seed, 1, step)[0])(seeds, steps)


def choose(
    logits: Float[Array, "B V"],
    keys: Key[Array, "B"],
    *,
    temperature: Float[Array, "*rows"],
    top_k: Int[Array, "*rows"],
    top_p: Float[Array, "*rows"],
) -> Int[Array, "B"]:
    """Chooses the next token of every row, int32.

    Draws with the Gumbel-max trick, with noise per row and vocabulary entry, so a filter that
    excludes nothing does not change the draw. A batch that is greedy, or unfiltered, skips the
    sort.
    """
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    temperature, top_k, top_p = (
        jnp.reshape(jnp.asarray(x), (-1, 1)) for x in (temperature, top_k, top_p)
    )
    cold = temperature <= 0

    def scores():
        scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
        scaled = scaled / jnp.maximum(temperature, COLDEST)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (size,), jnp.float32))(keys)
        return scaled, noise

    def greedy():
        return first_largest(logits)

    def drawn(tokens):
        return jnp.where(cold[:, 0], greedy(), tokens.astype(jnp.int32))

    def unfiltered():
        scaled, noise = scores()
        return drawn(first_largest(scaled + noise))

    def filtered():
        scaled, noise = scores()
        order = jnp.argsort(scaled, axis=-1, descending=True)
        ranked = jnp.take_along_axis(scaled, order, axis=-1)
        ranked = jnp.where(kept(ranked, top_k, top_p), ranked, -jnp.inf)
        best = jnp.argmax(ranked + jnp.take_along_axis(noise, order, axis=-1), axis=-1)
        return drawn(jnp.take_along_axis(order, best[:, None], axis=-1)[:, 0])

    everything = ((top_k <= 0) | (top_k >= size)) & (top_p >= 1)
    branch = jnp.where(jnp.all(cold), 0, jnp.where(jnp.all(everything | cold), 1, 2))
    return jax.lax.switch(branch, [greedy, unfiltered, filtered])


def first_largest(x: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
    """The index of the largest value of every row, the first of several, int32.

    It is `jnp.argmax` for numbers; on a CPU, two plain reductions take a fifth of its time.
    """
    index = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(x >= jnp.max(x, axis=-1, keepdims=True), index, index[-1]), axis=-1)


def penalised(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, ""]
) -> Float[Array, "B V"]:
    """Logits after the repetition penalty (arXiv 1909.05858, section 4.1), as in transformers.

    Those of tokens in `seen` are divided by it if positive, else multiplied.
    """
    logits = logits.astype(jnp.float32)
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def kept(
    ranked: Float[Array, "B V"], top_k: Int[Array, "*rows"], top_p: Float[Array, "*rows"]
) -> Bool[Array, "B V"]:
    """Masks the descending scores that pass both filters; the first one always does.

    A token is in the nucleus if the more probable tokens that top-k kept do not already add up to
    `top_p`. Both are scalars or columns [B, 1].
    """
    keep = (jnp.arange(ranked.shape[-1]) < top_k) | (top_k <= 0)
    share = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(share, axis=-1) - share
    # The sum of many float32 shares may round to 1 before the last token.
    first = jnp.arange(ranked.shape[-1]) == 0
    return keep & (first | (before < top_p) | (top_p >= 1))
