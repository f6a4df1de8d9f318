"""A tiny training run of any method, for tests of methods."""

from pathlib import Path

import pytest

from lorage_jax.config import DataConfig, ExperimentConfig, OptimizerConfig, Source
from lorage_jax.methods.training import train
from lorage_jax.train.loop import TrainResult
from tests.train.test_generator import interrupt_at


def experiment(pair, out: Path, method: str, rate: float = 2e-2, **fields) -> ExperimentConfig:
    """Four steps on 8 prompts with one query each of the built-in words."""
    data = DataConfig(
        (Source("synthetic", "synthetic", name="words"),),
        prompts_per_batch=8,
        queries_per_prompt=1,
        max_prompt_tokens=64,
        max_query_tokens=64,
        min_bucket=64,
    )
    values = {
        "cloud": str(pair[0]),
        "edge": str(pair[1]),
        "data": data,
        "optimizer": OptimizerConfig(learning_rate=rate, warmup_steps=1, weight_decay=0.0),
        "steps": 4,
        "dtype": "float32",
        "remat": "none",
        "save_every": 2,
    }
    return ExperimentConfig(out=str(out), method=method, **(values | fields))


def interrupted(config: ExperimentConfig, monkeypatch, step: int = 3) -> TrainResult:
    """The rest of a run that was killed after `step` steps."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    return train(config, resume=True, progress=False)
