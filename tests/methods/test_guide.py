"""The methods of docs/add_a_method.md work as printed there."""

import re
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest

from lorage_jax.config import DataConfig, ExperimentConfig, OptimizerConfig, Source
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods import method as registry
from lorage_jax.methods.training import train
from lorage_jax.models.leaves import initialise
from tests.tiny import padded_batch

GUIDE = Path(__file__).parents[2] / "docs" / "add_a_method.md"


@pytest.fixture
def blocks():
    found = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(found) == 3
    return found


@pytest.fixture
def guide(blocks, monkeypatch):
    """The names that the guide's first and third code blocks define; the registry is unchanged."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry.METHODS))
    monkeypatch.setattr(registry, "METHODS", MappingProxyType(registry._REGISTRY))
    names = {"__name__": __name__}
    for block in (blocks[0], blocks[2]):
        exec(block, names)
    return names


def test_the_method_without_training(guide):
    method = guide["Shouted"].load(None)
    assert [row.context for row in method.prepare(["a", "Bc"])] == ["A", "BC"]


@pytest.mark.slow
def test_methods_are_asked_side_by_side(guide, blocks, monkeypatch, capsys):
    monkeypatch.chdir(GUIDE.parents[1])
    exec(blocks[1], guide)
    assert capsys.readouterr().out.count("'") >= 4  # two answers
    assert list(guide["found"]) == ["shouted", "in_context", "bare"]


def test_the_method_with_training_is_trained(guide, pair, data_file, tmp_path):
    config = ExperimentConfig(
        cloud=str(pair[0]),
        edge=str(pair[1]),
        out=str(tmp_path / "run"),
        method="one_lora",
        data=DataConfig(
            (Source(str(data_file)),),
            prompts_per_batch=8,
            max_prompt_tokens=64,
            max_query_tokens=48,
            min_bucket=48,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=1),
        steps=12,
        dtype="float32",
        remat="none",
    )
    result = train(config, progress=False)
    losses = [loss for _, loss in result.losses]
    assert result.folder.name == "one_lora" and np.mean(losses[-3:]) < 0.9 * losses[0]
    edge = load_model(config.edge)
    method = guide["OneLora"].load(edge, result.folder)
    assert all(np.abs(one["b"]).max() > 0 for one in method.trained.values())


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
