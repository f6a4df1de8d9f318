"""A request to the device, and what it gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from lorage_jax.infer.sample import Sampling

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenScore:
    """Log-probabilities of a token and of the likeliest ones in its place, in nats."""

    logprob: float
    likeliest: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """The new tokens of a request since its last piece; the final one has a reason or an error."""

    tokens: list[int]
    scores: list[TokenScore] | None = None
    reason: Reason | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        """True if nothing follows."""
        return self.reason is not None or self.error is not None


def joined(pieces: Sequence[Piece]) -> Piece:
    """One piece instead of several that follow each other."""
    tokens = [token for piece in pieces for token in piece.tokens]
    scores = [score for piece in pieces for score in piece.scores or []]
    return Piece(tokens, scores, pieces[-1].reason, pieces[-1].error)


@dataclass(eq=False)
class Job:
    """One request to the device.

    Attributes:
        ids: the prompt's tokens.
        most: the most tokens to generate.
        deliver: called on the scheduler's thread with every piece.
        gates: [L, E] of its card; None: the base.
        sampling: how tokens are chosen; the penalty is the model's own.
        ends: token ids that end the answer: any of the model and its template, and at most
            MOST_STOPS others.
        scored: report log-probabilities.
    """

    ids: Sequence[int]
    most: int
    deliver: Callable[[Piece], None]
    gates: Float[np.ndarray, "L E"] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    ends: tuple[int, ...] = ()
    scored: bool = False
    cancelled: bool = False
    given: int = 0  # tokens so far
    done: bool = False

    @property
    def room(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.ids) + self.most
