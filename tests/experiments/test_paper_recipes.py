"""The paper's recipes: its hyper-parameters, models and data (PAPER's fixed values)."""

import dataclasses
from pathlib import Path

import pytest

from lorage_jax.commands.compile import model_shape
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.config import GeneratorConfig
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.hf.presets import SHAPES
from lorage_jax.hf.tokenizer import load_tokenizer
from lorage_jax.train.generator import check_models

ROOT = Path(__file__).parents[2]
EDGES = {
    "tinyllama": "tinyllama",
    "qwen": "qwen2-1.5b",
    "gemma": "gemma2-2b",
    "opt": "opt-2.7b",
    "qwen3": "qwen3-1.7b",
    "gemma3": "gemma3-1b",
    "smollm3": "smollm3-3b",
}


@pytest.mark.parametrize("name", EDGES)
def test_the_papers_values(name, monkeypatch):
    monkeypatch.delenv("LORAGE_DATA", raising=False)
    config = load_experiment(ROOT / "experiments" / "paper" / f"{name}.py")
    cloud, edge = (model_shape(role, getattr(config, role), None) for role in ("cloud", "edge"))
    assert (cloud, edge) == (SHAPES["llama3-8b"], SHAPES[EDGES[name]])
    check_models(config, cloud, edge)
    assert config.generator == GeneratorConfig.paper()
    optimizer = config.optimizer
    assert (optimizer.kind, optimizer.learning_rate, optimizer.betas) == (
        "adamw",
        2e-5,
        (0.9, 0.999),
    )
    assert (optimizer.weight_decay, optimizer.warmup_steps) == (0.1, 50)
    assert config.data.rows == 64
    assert config.data.max_prompt_tokens == config.data.max_query_tokens == 2048
    tasks = [source.name for source in config.data.sources if source.kind == "choices"]
    assert tasks == ["arc_challenge", "arc_easy", "openbookqa", "boolq", "social_iqa"]
    assert all(source.split == "train" for source in config.data.sources)
    assert config.steps == 4 * (37_658 + 1119 + 2251 + 4957 + 9427 + 33_410) // 64
    assert config.dtype == "bfloat16" and config.remat == "full"


def test_data_and_models_can_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAGE_DATA", str(tmp_path))
    monkeypatch.setenv("LORAGE_MODELS", "/weights")
    monkeypatch.delenv("LORAGE_CLOUD", raising=False)
    (tmp_path / "commonsense" / "boolq").mkdir(parents=True)
    config = load_experiment(ROOT / "experiments" / "paper" / "qwen.py")
    assert (config.cloud, config.edge) == ("/weights/Meta-Llama-3-8B", "/weights/Qwen2-1.5B")
    paths = [source.path for source in config.data.sources]
    assert str(tmp_path / "commonsense" / "boolq") in paths
    assert paths[-1] == f"{tmp_path}/alpaca/alpaca.jsonl.gz"


def test_another_cloud(monkeypatch):
    monkeypatch.setenv("LORAGE_CLOUD", "Qwen3-8B")
    config = load_experiment(ROOT / "experiments" / "paper" / "qwen3.py")
    assert model_shape("cloud", config.cloud, None) == SHAPES["qwen3-8b"]
    assert config.edge.endswith("Qwen3-1.7B")


@pytest.mark.slow
def test_little_of_a_batch_is_padding(shared, monkeypatch):
    """On the recipe's mixture of Alpaca and reasoning tasks, with and without packing."""
    monkeypatch.setenv("LORAGE_DATA", str(shared / "data"))
    packed = load_experiment(ROOT / "experiments" / "paper" / "tinyllama.py").data
    tokenizer = load_tokenizer(shared / "models" / "stories260K")
    shares, shapes = {}, set()
    for rows in (packed.packed_rows, None):
        data = dataclasses.replace(packed, packed_rows=rows)
        batches = iter(make_dataset(data, tokenizer, tokenizer, seed=0))
        masks = []
        for _ in range(16):
            batch = next(batches)
            masks += [rows.mask for rows in batch.rows]
            shapes |= {(rows, masks[-2].shape, masks[-1].shape)} if rows else set()
        shares[rows] = 1 - sum(x.sum() for x in masks) / sum(x.size for x in masks)
    assert shares[8] < 0.15 and shares[None] > 0.8
    assert len(shapes) <= 8  # number of programs
