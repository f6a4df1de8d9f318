"""The programs and reports of the latency and memory benchmarks. No timing is asserted."""

import itertools

import pytest

from lorage_jax.bench import latency, timing
from lorage_jax.bench.memory import bench_memory, cache_bytes
from lorage_jax.hf.family import family_decoder
from lorage_jax.models.cache import new_cache
from lorage_jax.models.presets import parameter_count

COUNTS = {"input_tokens": 20, "instruction_tokens": 30, "new_tokens": 5}


@pytest.fixture
def config():
    sizes = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
    return family_decoder("qwen2", layers=3, **sizes, eos_ids=(7,))


def test_in_turn_warms_every_action_and_alternates():
    calls = []
    actions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = timing.in_turn(actions, 3)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_what_is_timed_and_how_it_is_put_together(config, monkeypatch):
    """With a clock of 1 s per token read and 10 s per new one, the report must find both."""
    asked = []

    def generate_tokens(model, rows, *, max_new_tokens, prefixes=None):
        read = len(rows[0]) - (prefixes[0].shared(rows[0]) if prefixes else 0)
        asked.append((model.config.eos_ids, len(rows), read, max_new_tokens))

    def in_turn(actions, repeats):
        for action in actions.values():
            action()
        cost = [length + 10 * new for _, _, length, new in asked]
        return {name: [c] * repeats for name, c in zip(actions, cost, strict=True)}

    monkeypatch.setattr(latency, "generate_tokens", generate_tokens)
    monkeypatch.setattr(latency, "in_turn", in_turn)
    result = latency.bench_latency(config, **COUNTS, repeats=3, dtype="float32")
    assert asked == [((), 1, length, new) for length in (50, 20, 20) for new in (1, 5)]
    assert (result["padded_with_prompt"], result["padded_specialized"]) == (56, 20)
    assert result["prefill_ms_with_prompt"] == 60_000
    assert result["prefill_ms_specialized"] == 30_000
    assert result["decode_per_token_ms_specialized"] == 10_000
    assert result["request_ms_with_prompt"] == 100_000
    assert result["tokens_per_second_specialized"] == pytest.approx(5 / 70)
    assert result["ratio_prefill"] == 2
    assert result["ratio_decode_per_token"] == 1
    assert result["ratio_request"] == pytest.approx(100 / 70)
    assert result["tokens_prompt_cached"] == 20 and result["ratio_request_cached"] == 1


def test_latency_runs(config):
    result = latency.bench_latency(config, **COUNTS, repeats=2, dtype="bfloat16")
    assert result["layers"] == 3
    assert all(result[f"prefill_ms_{way}"] > 0 for way in latency.WAYS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_weights_and_cache_and_what_the_compiler_adds(config, dtype):
    result = bench_memory(config, **COUNTS, dtype=dtype)
    gib = 1 << 30
    weights = {"float32": 4, "bfloat16": 2}[dtype] * parameter_count(config)
    assert result["weights_gib"] * gib == weights
    slots = {"with_prompt": 56 + 16, "specialized": 20 + 16}
    for way, each in slots.items():
        assert result[f"cache_slots_{way}"] == each
        cache = cache_bytes(config, each, dtype)
        real = new_cache(config, 1, each, dtype)
        assert cache == real.k.nbytes + real.v.nbytes == result[f"cache_gib_{way}"] * gib
        request = result[f"request_argument_gib_{way}"] * gib
        assert weights <= request < weights + 4096  # plus tokens, mask and scalars
        decode = result[f"decode_argument_gib_{way}"] * gib
        assert weights + cache <= decode < weights + cache + 4096
        assert cache <= result[f"request_output_gib_{way}"] * gib < cache + 4096
        for part in ("request", "decode"):
            total = result[f"{part}_total_gib_{way}"] * gib
            assert total >= weights + cache
    for part, kind in itertools.product(("request", "decode"), ("argument", "total")):
        one, other = (result[f"{part}_{kind}_gib_{way}"] for way in slots)
        assert one > other
