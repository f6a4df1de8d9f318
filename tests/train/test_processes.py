"""Several real processes over gloo fail together, and train like a single one."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.config import MeshConfig, Source
from lorage_jax.methods.training import train
from tests.processes import finish, start, write_experiment

# The second host has other content in a file of the same name.
OTHER_FILE = """
from pathlib import Path
from lorage_jax.data import sources
sources.local_file = lambda _: Path({path!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gone", "other"])
def test_what_is_wrong_on_one_process_all_are_told(experiment, data_file, tmp_path, case):
    config, other = experiment(), tmp_path / "other.jsonl"
    other.write_text(data_file.read_text("utf-8").replace("go", "come"), "utf-8")
    if case == "gone":
        gone = experiment(data={"sources": (Source(str(tmp_path / "gone.jsonl")),)})
        second, says = write_experiment(gone, tmp_path), ("process 1 of 2 stopped: ", "gone.jsonl")
    else:
        swapped = OTHER_FILE.format(path=str(other))
        second = write_experiment(config, tmp_path, before=swapped)
        says = ("data_contents is ", "data_contents is ")
    found = finish(start([write_experiment(config, tmp_path), second]))
    for (code, _, err), words in zip(found, says, strict=True):
        last = err.strip().splitlines()[-1]
        assert code == 1 and last.startswith("lorage: ") and words in last, err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "packed"), [(2, 8), (4, None)])
def test_processes_train_as_one(experiment, tmp_path, count, packed):
    """The losses of one process; stopped, resumed with other processes and mesh, specialised."""
    settings = {"steps": 10, "save_every": 3, "generator": {"dropout": 0.0}}
    settings["data"] = {"packed_rows": packed}
    whole = train(experiment(out=str(tmp_path / "whole"), **settings), progress=False)
    config = experiment(mesh=MeshConfig(data=2, fsdp=count), **settings)
    stop = "if step == 4: raise KeyboardInterrupt"
    found = finish(start(write_experiment(config, tmp_path, stop), count=count))
    assert [code for code, _, _ in found] == [130] * count
    run, copy = tmp_path / "run", tmp_path / "copy"
    shutil.copytree(run, copy)
    # On one process and eight devices,
    config = dataclasses.replace(config, out=str(copy), mesh=MeshConfig(fsdp=4, tensor=2))
    one = train(config, resume=True, progress=False)
    # and on six minus `count` processes.
    config = dataclasses.replace(config, out=str(run), mesh=MeshConfig(tensor=2))
    result = tmp_path / "result.json"
    options = ("--resume", "--json", str(result))
    found = finish(start(write_experiment(config, tmp_path), *options, count=6 - count, devices=4))
    assert [code for code, _, _ in found] == [0] * (6 - count), found
    assert [bool("Trained" in out) for _, out, _ in found] == [True] + [False] * (5 - count)
    values = json.loads(result.read_text("utf-8"))
    assert values["first_step"] == one.first_step == 3
    losses = [loss for _, loss in whole.losses[3:]]
    np.testing.assert_allclose([loss for _, loss in values["losses"]], losses, rtol=1e-5)
    np.testing.assert_allclose([loss for _, loss in one.losses], losses, rtol=1e-5)
    generator = lg.load_generator(run / "generator")
    assert generator.fingerprint == values["fingerprint"]
    edge = lg.load_model(config.edge)
    special = lg.merge(edge, generator.pool, lg.specialize(generator, "Say 3 twice."))
    lg.export_merged(special, tmp_path / "merged", base=config.edge)
    assert np.isfinite(lg.forward(lg.load_model(tmp_path / "merged"), [[5, 6]])).all()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_takes_the_others_down(experiment, tmp_path, victim):
    config = experiment(steps=400, mesh=MeshConfig())
    kill = f"if step == 3 and os.environ['JAX_PROCESS_ID'] == '{victim}': os.kill(os.getpid(), 9)"
    processes = start(write_experiment(config, tmp_path, kill), count=2)
    processes[victim].wait(timeout=200)
    began = time.time()
    found = finish(processes)
    assert time.time() - began < 60
    code, _, err = found[1 - victim]
    assert code != 0 and found[victim][0] == -9
    assert "lost contact with the other processes" in err or "another task died" in err
    assert not (tmp_path / "run" / "generator").exists()
