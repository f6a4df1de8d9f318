"""A small training run that tests vary."""

import dataclasses
from functools import partial

import pytest

from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)


@pytest.fixture(scope="session")
def experiment_in(pair, data_file):
    """experiment_in(folder, **changes) -> ExperimentConfig; nested changes as dicts."""

    def make(folder, **changes):
        config = ExperimentConfig(
            cloud=str(pair[0]),
            edge=str(pair[1]),
            out=str(folder / "run"),
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


@pytest.fixture
def experiment(experiment_in, tmp_path):
    """experiment(**changes) -> ExperimentConfig, in the test's own folder."""
    return partial(experiment_in, tmp_path)
