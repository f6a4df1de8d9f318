"""The central identity: one card gives the same logits however it is applied.

Unmerged with gates = merged = exported and loaded by transformers = PEFT folder on the base model.
"""

import itertools

import numpy as np
import peft
import pytest
import transformers

from lorage_jax.config import GeneratorConfig
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from tests.tiny import FAMILIES, make_generator, padded_batch, torch_logits

PROMPTS = ["You are a pirate.", "Answer yes or no.", "Translate into French: one word only."]
ATOL = 2e-4

# peft asks transformers in a way that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def load_torch(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="eager"
    ).eval()


WAYS = [*itertools.product(["factors", "products"], ["per_layer", "shared"])]
CELLS = [
    *((FAMILIES[0], *way) for way in WAYS),
    *((family, *way) for family, way in zip(FAMILIES[1:4], WAYS[1:], strict=True)),
    *(
        pytest.param(family, *way, marks=pytest.mark.slow)
        for i, family in enumerate(FAMILIES[1:4], 1)
        for way in WAYS
        if way != WAYS[i]
    ),
    ("granite", "factors", "per_layer"),
    ("olmo2", "factors", "per_layer"),
    ("opt", "factors", "per_layer"),
    ("opt", "products", "shared"),  # two projections
    ("phi3", "factors", "shared"),  # gate and up in one module
    ("phi3", "products", "per_layer"),
    ("mistral", "factors", "per_layer"),
    ("qwen3", "products", "per_layer"),
    ("gemma3_text", "factors", "shared"),
    ("smollm3", "factors", "per_layer"),
]


@pytest.mark.parametrize(("family", "combine", "scope"), CELLS)
def test_all_roads_agree(tiny, cloud_dir, tmp_path, family, combine, scope):
    folder, base = tiny(family)
    edge = load_model(folder)
    config = GeneratorConfig(
        top_k=2, rank=4, alpha=8.0, cloud_rank=4, combine=combine, pool_scope=scope
    )
    gen = make_generator(cloud_dir, folder, config)
    cards = specialize(gen, PROMPTS)
    # Gates strictly between 0 and 1, else factors and products are the same.
    assert np.any((cards[0].gates > 0.1) & (cards[0].gates < 0.9))
    tokens, mask = padded_batch(3, 16)

    untouched = torch_logits(base, tokens, mask)[mask]
    merged_models = [merge(edge, gen.pool, card) for card in cards]
    merged = [np.asarray(forward(m, tokens, mask)) for m in merged_models]
    assert np.abs(merged[0][mask] - untouched).max() > 0.5
    assert np.abs(merged[0] - merged[1])[mask].max() > 0.05

    # One card for all rows, then a card of its own for every row.
    unmerged = np.asarray(forward(edge, tokens, mask, gates=cards[0], pool=gen.pool))
    np.testing.assert_allclose(unmerged[mask], merged[0][mask], atol=ATOL)
    fresh = np.asarray(forward(edge, tokens, mask, gates=cards[0]))  # it carries its pool
    np.testing.assert_array_equal(fresh, unmerged)
    mixed = np.asarray(forward(edge, tokens, mask, gates=cards, pool=gen.pool))
    for row in range(3):
        np.testing.assert_allclose(mixed[row][mask[row]], merged[row][row][mask[row]], atol=ATOL)

    export_merged(merged_models[0], tmp_path / "merged")
    got = torch_logits(load_torch(tmp_path / "merged"), tokens, mask)
    np.testing.assert_allclose(got[mask], merged[0][mask], atol=ATOL)

    export_adapter(gen.pool, cards[0], edge, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(load_torch(folder), str(tmp_path / "adapter")).eval()
    got = torch_logits(adapted, tokens, mask)
    np.testing.assert_allclose(got[mask], merged[0][mask], atol=ATOL)
    back = load_adapter(tmp_path / "adapter", edge)
    np.testing.assert_allclose(np.asarray(forward(back, tokens, mask)), merged[0], atol=ATOL)

    # The base is unchanged.
    np.testing.assert_allclose(np.asarray(forward(edge, tokens, mask))[mask], untouched, atol=5e-4)
