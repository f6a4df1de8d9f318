"""Means with their standard errors, paired gaps, and what counts as significant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from lorage_jax.errors import DataError

# Two-sided 5 % level of the normal distribution, for one comparison; of few values, such as seeds,
# Student's t has a higher one. It is not corrected for many: of twenty gaps that are nothing but
# noise, one is expected to pass.
Z = 1.96
LEVEL = 0.975  # of one side
FEWEST = 20  # records below which a normal approximation says nothing


@dataclass(frozen=True)
class Gap:
    """Mean difference between two arms over the same records, its standard error, the verdict.

    None where a file does not hold the figure, or one record leaves no standard error.
    """

    gap: float | None
    stderr: float | None
    significant: bool


def mean_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error sd / sqrt(n) with the sample sd (n - 1), as lm-eval has it.

    The error of a single value is None: one value says nothing about spread.
    """
    n = len(values)
    if not n:
        raise DataError("there are no values to take a mean of; expected at least one score.")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def paired_gap(a: Sequence[float], b: Sequence[float]) -> Gap:
    """mean(a - b) over the same records.

    Significant: |gap| > 1.96 stderr, and FEWEST records or more.
    """
    if len(a) != len(b):
        raise DataError(f"a paired gap needs the same records on both sides: {len(a)}, {len(b)}.")
    gap, stderr = mean_stderr([x - y for x, y in zip(a, b, strict=True)])
    return Gap(gap, stderr, is_significant(gap, stderr, len(a)))


def is_significant(
    gap: float, stderr: float | None, records: int, freedom: float = math.inf
) -> bool:
    """True if chance alone would hardly give such a gap: see Z and FEWEST.

    `freedom`: degrees of freedom of an error over few values, by Student's t.
    """
    level = Z if math.isinf(freedom) else float(stdtrit(freedom, LEVEL))
    return records >= FEWEST and stderr is not None and abs(gap) > level * stderr


def combined_errors(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(error, degrees of freedom) of a sum of independent terms, of which these are given.

    The degrees of freedom are those of Welch and Satterthwaite; infinite for a normal error.
    """
    squares = [error**2 for error, _ in errors]
    spread = math.fsum(
        square**2 / freedom for square, (_, freedom) in zip(squares, errors, strict=True)
    )
    total = math.fsum(squares)
    return math.sqrt(total), total**2 / spread if spread > 0 else math.inf


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1 / x), the paper's HAR; 0 as soon as one value is 0."""
    if not values or min(values) < 0:
        raise DataError(f"a harmonic mean needs values of 0 or more; found {list(values)}.")
    return len(values) / math.fsum(1 / value for value in values) if min(values) > 0 else 0.0
