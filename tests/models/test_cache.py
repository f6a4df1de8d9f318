"""The cache with a length per row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.hf.load import load_model
from lorage_jax.models.cache import new_cache
from lorage_jax.models.decoder import Decoder
from tests.tiny import TOLERANCE, torch_logits


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_rows_go_on_where_each_of_them_ends(family, tiny):
    """Texts that come in parts, padded on the right: the logits of transformers without a cache."""
    folder, reference = tiny(family)
    model, rng = load_model(folder), np.random.default_rng(0)
    rows = [rng.integers(3, 250, n) for n in (19, 12)]
    parts = [(7, 3), (0, 5), (4, 4), (8, 0)]  # tokens of each row, by call
    cache = new_cache(model.config, 2, 24, jnp.float32).replace(length=jnp.zeros(2, jnp.int32))
    found, begun = [[], []], [0, 0]

    @jax.jit
    def read(params, tokens, mask, cache):
        return Decoder(model.config).apply({"params": params}, tokens, mask, cache=cache)

    for counts in parts:
        tokens, mask = np.zeros((2, 8), np.int32), np.zeros((2, 8), bool)
        for i, count in enumerate(counts):
            tokens[i, :count] = rows[i][begun[i] : begun[i] + count]
            mask[i, :count] = True
            begun[i] += count
        output = read(model.params, tokens, mask, cache)
        cache = output.cache
        assert cache.length.tolist() == begun
        for i, count in enumerate(counts):
            found[i].append(np.asarray(output.logits)[i, :count])
    for row, logits in zip(rows, found, strict=True):
        wanted = torch_logits(reference, row[None])[0]
        np.testing.assert_allclose(np.concatenate(logits), wanted, atol=TOLERANCE[family])
