"""CMA-ES: it finds minima within its budget and bounds, the same ones for the same seed."""

import numpy as np

from lorage_jax.methods.search import minimise


def test_a_minimum_is_found_within_budget_and_bounds():
    goal, seen = np.array([0.9, -0.4, 0.2, 5.0]), []

    def objective(points):
        seen.append(points)
        return np.square(points - goal) @ np.array([1.0, 4.0, 9.0, 0.1])

    best, value = minimise(objective, np.zeros(4), budget=400, bound=1.5)
    np.testing.assert_allclose(best, [0.9, -0.4, 0.2, 1.5], atol=0.05)
    points = np.concatenate(seen)
    assert len(points) == 400 and np.abs(points).max() <= 1.5
    assert not points[0].any()  # the start comes first
    np.testing.assert_allclose(value, objective(best[None])[0], rtol=1e-12)
    assert value <= objective(points).min() + 1e-12
    again, _ = minimise(objective, np.zeros(4), budget=400, bound=1.5)
    other, _ = minimise(objective, np.zeros(4), budget=30, bound=1.5, seed=1)
    np.testing.assert_array_equal(best, again)
    assert not np.array_equal(best, other)


def test_a_start_that_nothing_beats_is_kept():
    best, value = minimise(lambda points: np.abs(points).sum(1), np.zeros(2), budget=9, bound=1.0)
    assert not best.any() and value == 0
