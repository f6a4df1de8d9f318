"""The methods of docs/add_a_method.md work as printed there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods import method as registry
from lorage_jax.models.leaves import initialise
from tests.tiny import padded_batch

GUIDE = Path(__file__).parents[2] / "docs" / "add_a_method.md"


@pytest.fixture
def guide(monkeypatch):
    """The names that the guide's first and third code blocks define; the registry is unchanged."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry.METHODS))
    names = {"__name__": __name__}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in (blocks[0], blocks[2]):
        exec(block, names)
    return names


def test_the_method_without_training(guide):
    method = guide["Shouted"].load(None)
    assert [row.context for row in method.prepare(["a", "Bc"])] == ["A", "BC"]


def test_the_method_with_training_is_saved_and_placed(guide, pair, tmp_path):
    edge, lora = load_model(pair[1]), guide["OneLora"]
    leaves = guide["expert_leaves"](edge.config, 1, guide["RANK"], "per_layer")
    trained = jax.tree.map(lambda x: np.asarray(x) + 0.1, initialise(leaves, jax.random.key(0)))
    for _ in range(2):  # a resumed run replaces its result
        lora.finish(None, None, trained, {}).write(tmp_path / "one_lora")
    method = lora.load(edge, tmp_path / "one_lora")
    jax.tree.map(np.testing.assert_array_equal, method.trained, trained)
    placed = method.place(edge, method.prepare(["a"]))
    tokens, mask = padded_batch(rows=2)
    moved = np.asarray(forward(placed.model, tokens, mask) - forward(edge, tokens, mask))
    assert np.abs(moved[mask]).max() > 1e-3
