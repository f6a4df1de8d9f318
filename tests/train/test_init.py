"""A run that begins from a generator has its trained parts; other kinds are refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from lorage_jax.config import GeneratorConfig
from lorage_jax.errors import ConfigError
from lorage_jax.generator.store import save_generator
from lorage_jax.methods.training import train
from lorage_jax.train import loop
from tests.tiny import make_generator


class Stop(Exception):
    pass


@pytest.fixture
def begun(pair, tmp_path):
    """(folder, generator) with random trained parts."""
    generator = make_generator(*pair, GeneratorConfig(rank=4, cloud_rank=4))
    save_generator(generator, tmp_path / "begun")
    return tmp_path / "begun", generator


def test_a_run_begins_with_the_parts_of_init(experiment, begun, monkeypatch):
    folder, generator = begun

    def stop(job, **_):
        raise Stop(job)

    monkeypatch.setattr(loop, "run", stop)
    with pytest.raises(Stop) as stopped:
        train(experiment(init=str(folder), generator={"dropout": 0.2}), progress=False)
    job = stopped.value.args[0]
    assert job.resolved["init_weights"] == generator.fingerprint
    assert int(job.state.step) == 0
    for ours, theirs in (
        (job.state.trained, generator.trained),
        (job.state.statistics, generator.statistics),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_generator_of_another_kind_is_refused(experiment, begun, pair, tmp_path):
    folder, generator = begun
    with pytest.raises(ConfigError, match="other switches: top_k 4, here 2; combine factors"):
        other = {"top_k": 2, "combine": "products"}
        train(experiment(init=str(folder), generator=other), progress=False)
    foreign = dataclasses.replace(generator, edge_fingerprint="sha256:" + "0" * 64)
    save_generator(foreign, tmp_path / "foreign")
    with pytest.raises(ConfigError, match="a generator for another edge"):
        train(experiment(init=str(tmp_path / "foreign")), progress=False)
    path = shutil.copytree(pair[1], tmp_path / "edge") / "config.json"
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    path.write_text(json.dumps(json.loads(path.read_text()) | rope))
    with pytest.raises(ConfigError, match=r"another config.json:\n.*rope_theta is 5.0; .*777.0"):
        train(experiment(init=str(folder), edge=str(path.parent)), progress=False)
    assert not (tmp_path / "run").exists()
