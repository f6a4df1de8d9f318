"""SIGTERM saves and exits with 143; SIGKILL loses only unsaved steps."""

import dataclasses
import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lorage_jax.config import MeshConfig
from lorage_jax.errors import Preempted
from lorage_jax.files.safetensors import read_tensors
from lorage_jax.methods.training import train
from lorage_jax.train.checkpoint import Checkpoints
from lorage_jax.train.watch import Watch
from tests.processes import finish, start, write_experiment


def test_sigterm_saves_the_step_it_is_at(experiment, monkeypatch, tmp_path):
    settings = {"save_every": 100}
    whole = train(experiment(out=str(tmp_path / "whole"), **settings), progress=False)
    record, before = Watch.record, signal.getsignal(signal.SIGTERM)

    def terminated(self, step, *rest):
        record(self, step, *rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "record", terminated)
        with pytest.raises(Preempted, match=r"after step (4|5) of 6, which is saved.*--resume"):
            train(experiment(**settings), progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    second = train(experiment(**settings), resume=True, progress=False)
    assert second.first_step in (4, 5)  # metrics are read one step late
    assert second.losses == whole.losses[second.first_step :]
    first, again = (read_tensors(x.folder / "generator.safetensors") for x in (whole, second))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all(experiment, tmp_path):
    """One process continues what two have saved, on another mesh."""
    settings = {"steps": 12, "save_every": 100, "generator": {"dropout": 0.0}}
    whole = train(experiment(out=str(tmp_path / "whole"), **settings), progress=False)
    config = experiment(mesh=MeshConfig(data=1, fsdp=2), **settings)
    noticing = "time.sleep(0.5); step != 2 or os.environ['JAX_PROCESS_ID'] == '0' or "
    noticing += "os.kill(os.getpid(), signal.SIGTERM)"
    found = finish(start(write_experiment(config, tmp_path, noticing), devices=1, count=2))
    assert [code for code, _, _ in found] == [143, 143], found
    assert all("stopped by SIGTERM after step" in err for _, _, err in found)
    config = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    rest = train(config, resume=True, progress=False)
    assert 2 < rest.first_step < 12
    losses = [[loss for _, loss in part] for part in (rest.losses, whole.losses[rest.first_step :])]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def states(folder: Path):
    """{step: leaves} of all existing checkpoints, each of which must load."""
    found = {}
    with Checkpoints(folder, keep=9) as checkpoints:
        for step in checkpoints.steps():
            checkpoints._resolve(step)
            names = checkpoints._orbax.checkpointables_metadata(step).metadata["state"]
            target = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for n, leaf in names.items()}
            config = checkpoints.config(step)
            found[step] = checkpoints.restore(target, config, step)[0]
    return found


@pytest.mark.slow
def test_thirty_kills_lose_only_what_was_not_saved(experiment, tmp_path):
    rng = random.Random(0)
    config = experiment(steps=5000, save_every=1, mesh=MeshConfig())
    path = write_experiment(config, tmp_path)
    folder, last = Path(config.out) / "checkpoints", 0
    for _ in range(30):
        (process,) = start([path], "--resume", devices=1)
        deadline = time.time() + 200
        while process.poll() is None and _newest(folder) <= last and time.time() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1))
        assert process.poll() is None, process.communicate()
        saved = _newest(folder)
        process.kill()
        process.communicate()
        found = states(folder)
        assert max(found) >= saved > last  # no complete checkpoint is lost
        last = max(found)
    killed = found[last]
    once = dataclasses.replace(config, out=str(tmp_path / "once"))
    stop = f"if step == {last + 1}: raise KeyboardInterrupt"
    assert finish(start([write_experiment(once, tmp_path, stop)], devices=1))[0][0] == 130
    straight = states(Path(once.out) / "checkpoints")[last]
    for name, value in straight.items():
        np.testing.assert_array_equal(value, killed[name], err_msg=name)


def _newest(folder: Path) -> int:
    done = folder.glob("[0-9]*/_CHECKPOINT_METADATA")
    return max((int(p.parent.name) for p in done if p.parent.name.isdecimal()), default=0)
