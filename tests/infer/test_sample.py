"""Choosing tokens: exact filters, right frequencies, independent draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.errors import ConfigError
from lorage_jax.infer.sample import Sampling, choose, kept, row_keys, sampling_of

PROBABILITIES = np.array([0.05, 0.4, 0.02, 0.3, 0.08, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 3.0


@jax.jit
def draw(logits, operands, step):
    keys = row_keys(operands["seed"], logits.shape[0], step)
    settings = {name: operands[name] for name in ("temperature", "top_k", "top_p")}
    return choose(logits, keys, **settings)


def frequencies(sampling: Sampling, rows: int = 20_000) -> np.ndarray:
    tokens = draw(jnp.tile(LOGITS, (rows, 1)), sampling.operands(), 0)
    return np.bincount(np.asarray(tokens), minlength=len(LOGITS)) / rows


def renormalised(values: np.ndarray, tokens: list[int]) -> np.ndarray:
    out = np.zeros_like(values)
    out[tokens] = values[tokens]
    return out / out.sum()


def test_greedy_is_argmax_and_takes_the_first_of_equals():
    logits = np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)
    logits[0] = 1.0
    tokens = np.asarray(draw(logits, Sampling(top_k=3, top_p=0.5).operands(), 0))
    np.testing.assert_array_equal(tokens, logits.argmax(1))
    assert tokens[0] == 0


@pytest.mark.parametrize(
    "sampling, expected",
    [
        (Sampling(temperature=1.0), PROBABILITIES),
        (Sampling(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Sampling(temperature=2.0), PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        (Sampling(temperature=1.0, top_k=3), renormalised(PROBABILITIES, [1, 3, 5])),
        # 0.4 + 0.3 does not reach 0.75, so the third token is in.
        (Sampling(temperature=1.0, top_p=0.75), renormalised(PROBABILITIES, [1, 3, 5])),
        # After top-k the shares are 0.47, 0.35, 0.18: two reach 0.75.
        (Sampling(temperature=1.0, top_k=3, top_p=0.75), renormalised(PROBABILITIES, [1, 3])),
        # The temperature comes first: 0.57, 0.32, ... reach 0.75 with two.
        (
            Sampling(temperature=0.5, top_p=0.75),
            renormalised(PROBABILITIES**2, [1, 3]),
        ),
    ],
)
def test_frequencies(sampling, expected):
    found = frequencies(sampling)
    assert np.abs(found - expected).max() < 0.012  # 3.5 standard errors at worst
    assert (found[expected == 0] == 0).all()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=5.0, top_p=1e-6),
        Sampling(temperature=1e-30),
    ],
)
def test_narrowest_settings_are_greedy(sampling):
    logits = np.random.default_rng(1).normal(size=(40, 64)).astype(np.float32) * 3
    np.testing.assert_array_equal(draw(logits, sampling.operands(), 7), logits.argmax(1))


def test_filters_that_exclude_nothing_change_no_draw():
    logits = np.random.default_rng(2).normal(size=(64, 32)).astype(np.float32)
    plain = draw(logits, Sampling(temperature=1.0, seed=3).operands(), 0)
    wide = draw(logits, Sampling(temperature=1.0, top_k=31, top_p=0.999999, seed=3).operands(), 0)
    assert (np.asarray(plain) == np.asarray(wide)).mean() > 0.95  # the rarest token may be cut


def test_draws_depend_on_seed_row_and_step_but_not_on_the_batch():
    logits = np.zeros((6, 1000), np.float32)
    hot = Sampling(temperature=1.0, seed=11)
    six = np.asarray(draw(logits, hot.operands(), 4))
    assert len(set(six.tolist())) == 6
    np.testing.assert_array_equal(draw(logits[:2], hot.operands(), 4), six[:2])
    assert (np.asarray(draw(logits, hot.operands(), 5)) != six).all()
    other = Sampling(temperature=1.0, seed=12)
    assert (np.asarray(draw(logits, other.operands(), 4)) != six).all()


def test_settings_are_operands():
    before = draw._cache_size()
    logits = np.zeros((3, 77), np.float32)
    for sampling in (Sampling(), Sampling(1.0), Sampling(0.3, 5), Sampling(0.3, 5, 0.5, 9)):
        draw(logits, sampling.operands(), 0)
    assert draw._cache_size() == before + 1


def test_a_full_nucleus_keeps_the_whole_tail():
    ranked = jnp.zeros((1, 100_000))  # float32 shares of 1e-5 do not sum to 1 exactly
    assert bool(kept(ranked, jnp.int32(0), jnp.float32(1.0)).all())
    assert int(kept(ranked, jnp.int32(7), jnp.float32(1.0)).sum()) == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Sampling(**fields)


def test_sampling_of():
    assert sampling_of(None, temperature=None, seed=4) == Sampling(seed=4)
    assert sampling_of(Sampling(0.5), seed=None) == Sampling(0.5)
    with pytest.raises(ConfigError, match="both"):
        sampling_of(Sampling(0.5), seed=4)
