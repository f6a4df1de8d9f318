"""A small CMA-ES: searches a few numbers without gradients (Hansen, arXiv 1604.00772)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIGMA = 0.5  # the first standard deviation


def minimise(
    objective: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    *,
    budget: int,
    bound: float,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """The best of `budget` points within [-bound, bound] per coordinate, and its value.

    The first point is `start`; the others are drawn in generations, from a normal distribution
    that follows the better half of the last one.

    Args:
        objective: values [k] of k points [k, n], to be minimised.
        start: the first mean, [n].
        budget: the number of points to evaluate.
        bound: points beyond it are moved to it.
        seed: of the draws.
    """
    rng, n = np.random.default_rng(seed), start.size
    rates, mean, covariance = _rates(n), np.asarray(start, float), np.eye(n)
    path, sigma_path, sigma = np.zeros(n), np.zeros(n), SIGMA
    best, lowest = mean.copy(), float(objective(mean[None])[0])
    left = budget - 1
    while left > 0:
        lengths, axes = np.linalg.eigh(covariance)
        lengths = np.sqrt(np.maximum(lengths, 1e-20))
        draws = rng.standard_normal((min(rates.size, left), n)) * lengths @ axes.T
        points = np.clip(mean + sigma * draws, -bound, bound)
        values = np.asarray(objective(points), float)
        left -= len(points)
        order = np.argsort(values, kind="stable")
        if values[order[0]] < lowest:
            best, lowest = points[order[0]].copy(), float(values[order[0]])
        if len(points) < rates.size:
            break
        steps = (points[order[: len(rates.weights)]] - mean) / sigma
        step = rates.weights @ steps
        mean = mean + sigma * step
        sigma_path = (1 - rates.sigma) * sigma_path
        whitened = axes @ ((axes.T @ step) / lengths)
        sigma_path += math.sqrt(rates.sigma * (2 - rates.sigma) * rates.mass) * whitened
        length = np.linalg.norm(sigma_path) / rates.expected
        sigma *= math.exp(rates.sigma / rates.damping * (length - 1))
        path = (1 - rates.path) * path
        path += math.sqrt(rates.path * (2 - rates.path) * rates.mass) * step
        spread = np.einsum("k,ki,kj->ij", rates.weights, steps, steps)
        covariance = (1 - rates.one - rates.kept) * covariance
        covariance += rates.one * np.outer(path, path) + rates.kept * spread
    return best, lowest


@dataclass(frozen=True)
class _Rates:
    """The strategy's constants for n coordinates, with the tutorial's defaults."""

    size: int  # points per generation
    weights: np.ndarray  # of the better half, best first
    mass: float  # how many points the weights amount to
    sigma: float  # learning rates: of the step size's path
    path: float  # of the covariance's path
    one: float  # of the covariance from its path
    kept: float  # of the covariance from the kept points
    damping: float
    expected: float  # mean length of a normal draw


def _rates(n: int) -> _Rates:
    size = 4 + math.floor(3 * math.log(n))
    kept = size // 2
    weights = math.log(kept + 0.5) - np.log(np.arange(1, kept + 1))
    weights /= weights.sum()
    mass = float(1 / np.square(weights).sum())
    sigma, one = (mass + 2) / (n + mass + 5), 2 / ((n + 1.3) ** 2 + mass)
    return _Rates(
        size,
        weights,
        mass,
        sigma,
        path=(4 + mass / n) / (n + 4 + 2 * mass / n),
        one=one,
        kept=min(1 - one, 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass)),
        damping=1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + sigma,
        expected=math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n)),
    )
