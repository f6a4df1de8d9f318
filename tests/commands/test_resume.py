"""Going on: from damaged checkpoints, for longer, with changed data."""

import json
import shutil
from typing import Any

import pytest

from lorage_jax.errors import TrainingError
from lorage_jax.train.resume import Resume, resume_of, set_aside
from tests.commands.world import EXPERIMENT, lorage


@pytest.fixture
def run(world, tmp_path):
    """A copy of the finished run, and an experiment whose data may be changed."""
    shutil.copytree(world.root / "run", tmp_path / "run")
    shutil.copy(world.root / "train.jsonl", tmp_path / "train.jsonl")
    text = EXPERIMENT.format(root=world.root)
    text = text.replace(f"{world.root}/train.jsonl", f"{tmp_path}/train.jsonl")
    (tmp_path / "exp.py").write_text(text)
    return tmp_path / "run"


def train(run, *options) -> Any:
    figures = run.parent / "figures.json"
    code = lorage("train", run.parent / "exp.py", "--out", run, "--json", figures, *options)
    return json.loads(figures.read_text()) if code == 0 else code


@pytest.mark.parametrize("part", ["state", "metrics", "data", "config"])
def test_damage_is_told_with_the_step_and_a_way_on(run, capfd, part):
    for path in (run / "checkpoints" / "6" / part).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert train(run, "--resume") == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error and error.count("lorage: ") == 1
    assert f"The checkpoint of step 6 is damaged: its {part} cannot be read" in error
    assert "--resume-step 4 (there are 4" in error
    if part == "metrics":  # by which not even the others could be listed
        done = train(run, "--resume-step", "4")
        assert done["first_step"] == 4 and done["steps"] == 6
        assert (run / "checkpoints_set_aside" / "6").is_dir()
        assert (run / "checkpoints" / "6").is_dir()  # written anew


def test_steps_to_trace_that_are_done_already_are_told(run, capfd):
    assert train(run, "--resume", "--profile", "1:6") == 1
    error = capfd.readouterr().err
    assert "--profile asks for steps 1 to 6, but the run goes on after step 6. Choose" in error
    assert train(run, "--resume-step", "4", "--profile", "2:4") == 1
    assert "the run goes on after step 4. Choose later steps." in capfd.readouterr().err
    assert train(run, "--resume", "--profile", "3:5")["first_step"] == 4
    assert list((run / "profile").rglob("*.xplane.pb"))


def test_a_run_goes_on_for_longer_and_with_changed_data(run, world, capfd):
    experiment = run.parent / "exp.py"
    experiment.write_text(experiment.read_text().replace("steps=6", "steps=8"))
    done = train(run, "--resume")
    assert done["first_step"] == 6 and len(done["losses"]) == 2
    assert "steps was 6, is 8" in capfd.readouterr().err
    with (run.parent / "train.jsonl").open("a") as file:
        file.write(json.dumps({"system": "s", "user": "u", "target": "t"}) + "\n")
    assert train(run, "--resume") == 1
    error = capfd.readouterr().err
    assert "data_contents" in error and "--resume-data changed" in error
    experiment.write_text(experiment.read_text().replace("steps=8", "steps=9"))
    assert train(run, "--resume-data", "changed")["first_step"] == 8
    experiment.write_text(experiment.read_text().replace("steps=9", "steps=3"))
    assert train(run, "--resume", "--resume-data", "changed") == 1
    assert "step 9 is beyond the run's 3 steps" in capfd.readouterr().err
    assert train(run, "--resume-step", "5") == 1
    assert "no checkpoint of step 5; found" in capfd.readouterr().err


def test_nothing_is_set_aside_for_a_step_that_is_not_there(tmp_path):
    for step in (2, 4):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").touch()
    with pytest.raises(TrainingError, match="no checkpoint of step 3; found 2, 4"):
        set_aside(tmp_path / "checkpoints", 3)
    assert set_aside(tmp_path / "checkpoints", 2) == [4]
    (tmp_path / "checkpoints" / "4").mkdir()
    assert set_aside(tmp_path / "checkpoints", 2) == [4]  # a second time, beside the first
    assert len(list((tmp_path / "checkpoints_set_aside").iterdir())) == 2
    assert resume_of(False, None, "same") is None
    assert resume_of(False, 3, "same") == Resume(3) and resume_of(True, None, "same") == Resume()
