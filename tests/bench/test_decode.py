"""Decoding is timed with base and merged weights, on a tiny shape."""

import dataclasses

import pytest

from lorage_jax.bench import decode
from lorage_jax.hf.family import family_decoder

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
CONFIG = family_decoder("llama", layers=2, **SIZES)


def test_decoding_is_measured_for_both(monkeypatch):
    """Merged weights are placed unlike fresh ones: the first call with each is a warm-up."""
    called = []
    generate = decode.generate_tokens

    def watched(model, *args, **kwargs):
        called.append("base" if model.card is None else "merged")
        return generate(model, *args, **kwargs)

    monkeypatch.setattr(decode, "generate_tokens", watched)
    result = decode.bench_decode(dataclasses.replace(CONFIG, eos_ids=(3,)), 1, "float32")
    assert called == ["base", "merged"] * 2
    ratio = result["merged_seconds"] / result["base_seconds"]
    assert result["ratio_merged_to_base"] == pytest.approx(ratio)
