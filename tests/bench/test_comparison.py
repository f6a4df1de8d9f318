"""The form and the arithmetic of a comparison, and what it says without the other library."""

import os
from types import SimpleNamespace

import pytest

from lorage_jax.bench import peers, timing
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
    result = compared(OURS, None, WORK, 60_000.0, missing=note)
    assert (result["transformers"], result["ratio"], result["note"]) == (None, None, note)
    assert result["lorage"]["seconds"] == 0.5


def _without(*names):
    find = peers.importlib.util.find_spec
    return lambda name: None if name in names else find(name)


@pytest.mark.parametrize(("others", "said"), [(0.05, False), (0.62, True), (None, False)])
def test_a_busy_machine_is_told(others, said):
    result = compared(OURS, THEIRS, WORK, 60_000.0, others=others)
    assert result["cpu_share_of_others"] == others
    assert ("note" in result) == said
    if said:
        assert result["note"].startswith("other processes used 62% of the CPU")


def test_others_are_all_but_this_process(tmp_path, monkeypatch):
    """Of 400 s of two cores, others worked 150 s and this process 70 s."""
    clock = SimpleNamespace(now=1000.0, own=5.0, perf_counter=lambda: clock.now)
    clock.process_time = lambda: clock.own
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")

    def used(seconds):  # user, nice, system, idle, iowait, irq, softirq, steal
        stat.write_text(
            f"cpu  {seconds * tick} 0 {2 * tick} 99 99 {tick} {tick} 99 0 0\ncpu0 1 1\n"
        )

    monkeypatch.setattr(timing, "STAT", stat)
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 2)
    used(300)
    with timing.Bystanders() as others:
        used(520)
        clock.now += 200
        clock.own += 70
    assert others.share == pytest.approx(150 / 400)
    monkeypatch.setattr(timing, "STAT", tmp_path / "none")
    with timing.Bystanders() as others:
        pass
    assert others.share is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matmul_rate_is_that_of_the_fastest_size(dtype):
    rate = matmul_rate(dtype, sizes=(8, 256))
    assert 1e6 < rate < 1e15
