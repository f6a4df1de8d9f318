"""A small training run that tests vary."""

import dataclasses

import pytest

from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)


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
