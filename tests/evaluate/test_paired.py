"""Means, errors and gaps against numpy and by hand."""

import math

import numpy as np
import pytest

from lorage_jax.errors import DataError
from lorage_jax.evaluate.paired import (
    Gap,
    combined_errors,
    harmonic_mean,
    is_significant,
    mean_stderr,
    paired_gap,
)


def test_mean_and_error_are_those_of_the_sample():
    values = [0.0, 1.0, 1.0, 0.25, 0.5]
    mean, stderr = mean_stderr(values)
    assert mean == pytest.approx(np.mean(values))
    assert stderr == pytest.approx(np.std(values, ddof=1) / np.sqrt(5))


def test_one_value_has_no_error_and_none_is_an_error():
    assert mean_stderr([0.5]) == (0.5, None)
    assert paired_gap([1.0], [0.0]) == Gap(1.0, None, False)
    with pytest.raises(DataError, match="no values"):
        mean_stderr([])


def test_the_gap_is_paired():
    """Pairing matters: the same two lists, paired differently, have another error."""
    high, low = [1.0, 0.9, 0.2, 0.1] * 5, [0.8, 0.8, 0.1, 0.0] * 5
    gap = paired_gap(high, low)
    assert gap.gap == pytest.approx(0.125)
    assert gap.stderr == pytest.approx(np.std(np.subtract(high, low), ddof=1) / 20**0.5)
    assert paired_gap(high[:19], low[:19]).significant is False  # too few for an error
    assert gap.significant is True
    crossed = paired_gap(high, low[::-1])
    assert crossed.gap == pytest.approx(0.125)
    assert crossed.significant is False


@pytest.mark.parametrize(("shift", "significant"), [(1.97, True), (1.95, False), (-1.97, True)])
def test_the_level_is_196_errors_in_both_directions(shift, significant):
    noise = [-1.0, 1.0] * 50
    stderr = mean_stderr(noise)[1]
    moved = [x + shift * stderr for x in noise]
    assert paired_gap(moved, [0.0] * 100).significant is significant


def test_errors_over_few_values_have_the_level_of_students_t():
    """Two and three seeds: 12.7 and 4.3 errors. Of several errors, Welch's degrees of freedom."""
    for seeds, level in ((2, 12.706), (3, 4.303), (4, 3.182)):
        for factor, significant in ((0.99, False), (1.01, True)):
            stderr, freedom = combined_errors([(0.1, seeds - 1)])
            assert is_significant(factor * level * 0.1, stderr, 100, freedom) is significant
    stderr, freedom = combined_errors([(0.3, math.inf), (0.4, 2), (0.0, 1)])
    assert stderr == pytest.approx(0.5)
    assert freedom == pytest.approx(0.25**2 / (0.16**2 / 2))
    assert combined_errors([(0.3, math.inf)]) == (pytest.approx(0.3), math.inf)
    assert combined_errors([(0.0, math.inf), (0.0, 2)]) == (0.0, math.inf)
    assert is_significant(0.1971, 0.1, 100) and not is_significant(0.1959, 0.1, 100)


def test_the_rate_of_false_differences_is_that_of_the_level():
    """Two arms of three seeds each, which differ by noise alone."""
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        sides = rng.standard_normal((2, 3))
        errors = [(mean_stderr(side.tolist())[1] or 0.0, 2) for side in sides]
        gap, (stderr, freedom) = sides[0].mean() - sides[1].mean(), combined_errors(errors)
        found.append(is_significant(gap, stderr, 100, freedom))
    assert np.mean(found) < 0.06


def test_sides_of_different_length_are_refused():
    with pytest.raises(DataError, match="2, 1"):
        paired_gap([1.0, 0.0], [1.0])


def test_harmonic_mean():
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([1.0, 0.0]) == 0.0
    # The paper's Table 2, LoRA-Gen on Gemma-2B: HAR 60.2.
    row = [51.2, 81.9, 39.0, 76.2, 55.6, 56.0, 71.6, 79.5]
    assert harmonic_mean(row) == pytest.approx(60.2, abs=0.1)
    for bad in ([], [-0.1, 1.0]):
        with pytest.raises(DataError, match="harmonic"):
            harmonic_mean(bad)
