"""The programs and reports of the latency and memory benchmarks. No timing is asserted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.bench import latency, timing
from lorage_jax.bench.edge import random_routed
from lorage_jax.bench.memory import bench_memory, cache_bytes
from lorage_jax.bench.routed import ROUTED
from lorage_jax.hf.family import family_decoder
from lorage_jax.models.cache import new_cache
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.presets import parameter_count, random_model

COUNTS = {"input_tokens": 20, "instruction_tokens": 30, "new_tokens": 5}
BESIDE = ("loramoe", "mixlora")


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
    """With a clock of 1 s per token read and 10 s per new one, the report must find both.

    Each router of a layer adds 1 s per token read.
    """
    asked, beside = [], []

    def generate_tokens(model, rows, *, max_new_tokens, prefixes=None, pool=None):
        read = len(rows[0]) - (prefixes[0].shared(rows[0]) if prefixes else 0)
        asked.append((model.config.eos_ids, len(rows), read, max_new_tokens))
        beside.append(() if pool is None else (*sorted(pool.routers), pool.top_k))

    def in_turn(actions, repeats):
        for action in actions.values():
            action()
        slower = [max(len(routers), 1) for routers in beside]
        cost = [s * length + 10 * new for s, (_, _, length, new) in zip(slower, asked, strict=True)]
        return {name: [c] * repeats for name, c in zip(actions, cost, strict=True)}

    monkeypatch.setattr(latency, "generate_tokens", generate_tokens)
    monkeypatch.setattr(latency, "in_turn", in_turn)
    result = latency.bench_latency(config, **COUNTS, repeats=3, dtype="float32")
    merged = [((), 1, length, new) for length in (50, 20, 20) for new in (1, 5)]
    assert asked == merged + 2 * [((), 1, 50, 1)]
    assert beside == [()] * 6 + [("down", "gate", "up", None), ("ffn", 2)]
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
    for way, took in zip(BESIDE, (210, 110), strict=True):
        assert (result[f"tokens_{way}"], result[f"padded_{way}"]) == (50, 56)
        assert result[f"prefill_ms_{way}"] == 1000 * took
        assert result[f"ratio_prefill_{way}"] == took / 30
        assert f"request_ms_{way}" not in result


def test_latency_runs(config):
    result = latency.bench_latency(config, **COUNTS, repeats=2, dtype="bfloat16")
    assert result["layers"] == 3
    assert latency.BESIDE == BESIDE
    assert all(result[f"prefill_ms_{way}"] > 0 for way in (*latency.WAYS, *BESIDE))


@pytest.mark.parametrize("method", ROUTED, ids=lambda method: method.name)
def test_the_timed_experts_and_their_routers_have_effect(config, method):
    """Logits differ from the bare edge's, and again when every router is of zeros."""
    params, pool = random_model(config, "float32").params, random_routed(method, config)
    tokens = jnp.arange(8, dtype=jnp.int32)[None]

    def logits(pool):
        return Decoder(config).apply({"params": params}, tokens, pool=pool).logits

    even = pool.replace(routers=jax.tree.map(jnp.zeros_like, pool.routers))
    bare, routed, unrouted = (np.asarray(logits(one)) for one in (None, pool, even))
    noise = 1e-4 * np.abs(bare).max()
    assert np.abs(routed - bare).max() > noise
    assert np.abs(routed - unrouted).max() > noise


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


def adapter_count(config, name):
    """Numbers of a method's experts, routers and plain LoRA, by the formulas of their papers."""
    d, f, e = config.width, config.ffn_width, 8
    own, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
    if name == "loramoe":  # rank 4
        return config.layers * (3 * e * (d + f) * 4 + e * (2 * d + f))
    attention = 16 * (2 * (d + own) + 2 * (d + shared))
    return config.layers * (attention + e * 3 * (d + f) * 16 + e * d)


def test_memory_of_experts_beside_the_edge_is_theirs_by_formula(config):
    """The programs get all of them as arguments, float32 whatever the edge is."""
    result = bench_memory(config, **COUNTS, dtype="bfloat16")
    gib = 1 << 30
    assert result["weights_gib"] * gib == 2 * parameter_count(config)
    for name in BESIDE:
        held = 4 * adapter_count(config, name)
        assert result[f"adapters_gib_{name}"] * gib == held
        for key in ("tokens", "cache_slots", "cache_gib"):
            assert result[f"{key}_{name}"] == result[f"{key}_with_prompt"]
        for part in ("request", "decode"):
            more = {
                kind: result[f"{part}_{kind}_gib_{name}"] - result[f"{part}_{kind}_gib_with_prompt"]
                for kind in ("argument", "total")
            }
            assert more["argument"] * gib == held
            assert more["total"] * gib >= held
            ratio = result[f"ratio_{part}_beyond_weights_{name}"]
            beyond = result[f"{part}_total_gib_{name}"] - result["weights_gib"]
            least = result[f"{part}_total_gib_specialized"] - result["weights_gib"]
            assert ratio == pytest.approx(beyond / least)
            assert ratio > result[f"ratio_{part}_beyond_weights"]
