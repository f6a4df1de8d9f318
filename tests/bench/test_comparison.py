"""The form and the arithmetic of a comparison, and what it says without the other library."""

import pytest

from lorage_jax.bench import peers
from lorage_jax.bench.comparison import Side, Work, compared
from lorage_jax.bench.matmul import matmul_rate

OURS = Side("generate", [0.5, 0.25, 4.0], {"compile_seconds": 7.0})
THEIRS = Side("transformers", [1.0, 2.0, 1.0])
WORK = Work("tokens", 100, 3000)


def test_medians_their_ratio_and_shares():
    result = compared(OURS, THEIRS, WORK, rate=60_000.0)
    assert result["lorage"] == {
        "library": "generate",
        "seconds": 0.5,
        "tokens_per_second": 200,
        "matmul_share": 2 * 3000 / 0.5 / 60_000,
        "compile_seconds": 7.0,
    }
    assert result["transformers"]["seconds"] == 1.0
    assert result["transformers"]["matmul_share"] == pytest.approx(0.1)
    assert result["ratio"] == 2.0  # above 1: we are faster
    assert result["matmul_share"] == pytest.approx(0.2)
    assert result["largest_spread_within_one"] == 16
    assert result["machine"]["threads"] == peers.threads() >= 1
    assert "note" not in result


def test_without_the_other_library(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", _without("peft", "lm_eval"))
    assert peers.missing("torch", "transformers") is None
    note = peers.missing("torch", "peft")
    assert note == (
        "peft is not installed, so only lorage was measured; for the comparison, pip install peft."
    )
    assert peers.missing("lm_eval", "peft") == (
        "lm-eval, peft are not installed, so only lorage was measured; for the comparison, "
        "pip install lm-eval peft."
    )
    result = compared(OURS, None, WORK, 60_000.0, note)
    assert (result["transformers"], result["ratio"], result["note"]) == (None, None, note)
    assert result["lorage"]["seconds"] == 0.5


def _without(*names):
    find = peers.importlib.util.find_spec
    return lambda name: None if name in names else find(name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matmul_rate_is_that_of_the_fastest_size(dtype):
    rate = matmul_rate(dtype, sizes=(8, 256))
    assert 1e6 < rate < 1e15
