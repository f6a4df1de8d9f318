"""The merge is timed against PEFT, on a tiny shape. No timing is asserted."""

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.bench.edge import random_edge
from lorage_jax.bench.merge import bench_merge
from lorage_jax.hf.family import family_decoder

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
CONFIG = family_decoder("llama", layers=2, **SIZES)


def test_the_card_changes_the_edge():
    edge, pool, card = random_edge(CONFIG, "float32")
    special = lg.merge(edge, pool, card)
    tokens = [[1, 2, 3]]
    assert np.abs(lg.forward(edge, tokens) - lg.forward(special, tokens)).max() > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_merge_is_measured_beside_peft(family):
    config = family_decoder(family, layers=2, **SIZES)
    result = bench_merge(config, 2, "bfloat16")
    ratio = result["peft_seconds"] / result["lorage_donated_seconds"]
    assert result["ratio_peft_to_lorage_donated"] == pytest.approx(ratio)
    assert min(result["lorage_seconds"], result["lorage_donated_seconds"]) > 0
