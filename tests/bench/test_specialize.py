"""The cloud pass is timed over a batch of prompts and one by one, on a tiny shape."""

import numpy as np
import pytest

from lorage_jax.bench import specialize
from lorage_jax.config import GeneratorConfig
from lorage_jax.hf.family import family_decoder

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
CONFIG = family_decoder("llama", layers=2, **SIZES)


def test_many_prompts_are_specialised_in_one_call_and_one_by_one(monkeypatch):
    seen = []
    original = specialize.compiled_gates

    def watched(*args):
        gates = original(*args)
        seen.append((args[-2].shape, int(args[-1].sum()), gates))
        return gates

    monkeypatch.setattr(specialize, "compiled_gates", watched)
    cloud = family_decoder("llama", layers=1, **SIZES)
    result = specialize.bench_specialize(
        CONFIG, cloud, GeneratorConfig(), instruction_tokens=20, repeats=1, dtype="float32"
    )
    shapes = [shape for shape, _, _ in seen]
    assert shapes == ([(64, 24)] + [(1, 24)] * 64 + [(64, 24)] + [(1, 24)] * 64)
    assert all(real == 20 * shape[0] for shape, real, _ in seen)
    batch, single = seen[0][2], [gates for _, _, gates in seen[1:65]]
    assert batch.shape == (64, CONFIG.layers, 8)
    np.testing.assert_allclose(batch, np.concatenate(single), atol=1e-5)
    ratio = result["batch_seconds"] / result["single_calls_seconds"]
    assert result["ratio_batch_to_single"] == pytest.approx(ratio)
