"""The benchmarks' mechanics, on a tiny shape: they time what they say. No timing is asserted."""

import dataclasses

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.evaluate import efficiency


@pytest.fixture
def tiny_shape(monkeypatch):
    full = efficiency.tinyllama

    def small(layers):
        return dataclasses.replace(
            full(layers), vocab_size=97, width=32, heads=4, kv_heads=2, head_dim=8, ffn_width=48
        )

    monkeypatch.setattr(efficiency, "tinyllama", small)


def test_the_shape_is_tinyllamas():
    config = efficiency.tinyllama(22)
    count = sum(
        np.prod(leaf.shape) for leaf in efficiency.jax.tree.leaves(efficiency.model_leaves(config))
    )
    assert count == 1_100_048_384  # TinyLlama-1.1B


def test_the_card_changes_the_edge(tiny_shape):
    edge, pool, card = efficiency.random_edge(2, "float32")
    special = lg.merge(edge, pool, card)
    tokens = [[1, 2, 3]]
    assert np.abs(lg.forward(edge, tokens) - lg.forward(special, tokens)).max() > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_merge_is_measured_beside_peft(tiny_shape):
    result = efficiency.bench_merge(2, 2, "bfloat16")
    ratio = result["peft_seconds"] / result["lorage_donated_seconds"]
    assert result["ratio_peft_to_lorage_donated"] == pytest.approx(ratio)
    assert min(result["lorage_seconds"], result["lorage_donated_seconds"]) > 0


def test_decoding_is_measured_for_both(tiny_shape):
    result = efficiency.bench_decode(2, 3, "float32")
    ratio = result["merged_seconds"] / result["base_seconds"]
    assert result["ratio_merged_to_base"] == pytest.approx(ratio)
