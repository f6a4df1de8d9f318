"""A small training run that tests vary: random cloud and edge of different families, JSON lines."""

import dataclasses
import json

import pytest

from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)
from tests.tiny import make_tiny


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """(cloud folder, edge folder): a llama and a qwen2 of different width and depth."""
    root = tmp_path_factory.mktemp("pair")
    make_tiny("llama", root / "cloud", seed=1, num_hidden_layers=2, hidden_size=32)
    make_tiny("qwen2", root / "edge", seed=2)
    return root / "cloud", root / "edge"


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    """80 records under 40 system prompts, two a prompt."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"system": f"Say {i // 2} twice.", "user": f"go {i}", "target": f"{i // 2} {i // 2}"}
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def experiment(pair, data_file, tmp_path):
    """experiment(**changes) -> ExperimentConfig; changes of `generator` etc. as dicts."""

    def make(**changes):
        config = ExperimentConfig(
            cloud=str(pair[0]),
            edge=str(pair[1]),
            out=str(tmp_path / "run"),
            data=DataConfig(
                sources=(Source(str(data_file)),),
                prompts_per_batch=8,
                queries_per_prompt=2,
                max_prompt_tokens=64,
                max_query_tokens=48,
                min_bucket=48,
            ),
            generator=GeneratorConfig(rank=4, cloud_rank=4),
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
            mesh=MeshConfig(),
            steps=6,
            dtype="float32",
            remat="none",
            save_every=5,
            log_every=2,
        )
        for name, value in changes.items():
            if isinstance(value, dict):
                value = dataclasses.replace(getattr(config, name), **value)
            changes[name] = value
        return dataclasses.replace(config, **changes)

    return make
