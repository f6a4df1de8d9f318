"""Prefill and decoding of a folder, next to transformers: the same tokens on both sides."""

import numpy as np
import pytest

from lorage_jax.bench import generation, peers
from lorage_jax.errors import ConfigError


@pytest.fixture
def asked(monkeypatch):
    """The (rows, number of new tokens, answer) of every call, by side."""
    found = {"lorage": [], "transformers": []}
    ours, theirs = generation.generate_tokens, peers.greedy

    def ours_watched(model, rows, *, max_new_tokens):
        answer = ours(model, rows, max_new_tokens=max_new_tokens)
        found["lorage"].append((rows, max_new_tokens, answer))
        return answer

    def theirs_watched(model, rows, new_tokens):
        answer = theirs(model, rows, new_tokens)
        found["transformers"].append((rows, new_tokens, answer))
        return answer

    monkeypatch.setattr(generation, "generate_tokens", ours_watched)
    monkeypatch.setattr(peers, "greedy", theirs_watched)
    monkeypatch.setattr(generation, "matmul_rate", lambda dtype: 1e9)
    return found


def test_decoding(tiny, asked):
    folder, _ = tiny("llama")
    result = generation.compare_decode(
        folder, batch=2, prompt_tokens=12, new_tokens=5, repeats=1, dtype="float32"
    )
    assert result["transformers"]["share_of_equal_tokens"] == 1.0
    assert [count for _, count, _ in asked["lorage"]] == [5, 1, 5, 1, 5]  # with two warm-ups
    assert asked["lorage"] == asked["transformers"]
    rows, _, answer = asked["lorage"][0]
    assert np.shape(rows) == (2, 12) and np.shape(answer) == (2, 5)
    assert result["ratio"] == pytest.approx(
        result["transformers"]["seconds"] / result["lorage"]["seconds"]
    )
    assert (result["prompt_tokens"], result["padded_tokens"], result["batch"]) == (12, 16, 2)
    assert result["lorage"]["compile_seconds"] > 0
    assert result["lorage"]["tokens_per_second"] == pytest.approx(2 / result["lorage"]["seconds"])


def test_seconds_of_a_token_are_a_difference(tiny, monkeypatch, asked):
    """With a clock of 3 s per prompt and 2 s per further token."""
    folder, _ = tiny("llama")

    def in_turn(actions, repeats):
        assert sorted(actions) == ["lorage 1", "lorage 5", "transformers 1", "transformers 5"]
        slow = {"lorage": 1, "transformers": 4}
        return {name: [(3 + 2 * (int(name.split()[1]) - 1)) * slow[name.split()[0]]] * repeats
                for name in actions}  # fmt: skip

    monkeypatch.setattr(generation, "in_turn", in_turn)
    result = generation.compare_decode(
        folder, batch=2, prompt_tokens=12, new_tokens=5, repeats=3, dtype="float32"
    )
    assert (result["lorage"]["seconds"], result["transformers"]["seconds"]) == (2, 8)
    assert result["ratio"] == 4
    # The matrices and the head, and attention over the 12 + 5 // 2 slots.
    config = generation._endless(generation.load_model(folder, "float32")).config
    layer = config.width * (config.heads + config.kv_heads) * config.head_dim * 2
    layer += 3 * config.width * config.ffn_width + 2 * config.heads * config.head_dim * 14
    assert result["macs"] == 2 * (config.layers * layer + config.vocab_size * config.width)


def test_prefill_without_torch(tiny, monkeypatch, asked):
    folder, _ = tiny("llama")
    monkeypatch.setattr(peers, "missing", lambda *names: "torch is not installed.")
    result = generation.compare_prefill(
        folder, batch=2, prompt_tokens=12, repeats=1, dtype="float32"
    )
    assert asked["transformers"] == [] and {count for _, count, _ in asked["lorage"]} == {1}
    assert (result["transformers"], result["ratio"]) == (None, None)
    assert result["note"].startswith("torch is not installed.")  # others may be busy, too
    assert result["lorage"]["tokens_per_second"] == pytest.approx(24 / result["lorage"]["seconds"])


def test_one_new_token_has_no_time_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="new_tokens is 1; expected 2 or more"):
        generation.compare_decode(
            tmp_path, batch=1, prompt_tokens=1, new_tokens=1, repeats=1, dtype="float32"
        )
