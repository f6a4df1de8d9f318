"""The script that runs the rows of a comparison side by side."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "side_by_side.py"
EXPERIMENT = """
from lorage_jax import nano
from lorage_jax.config import *

def config():
    base = ExperimentConfig(cloud=str(nano.CLOUD), edge=str(nano.EDGE), out="runs",
                            data=DataConfig((Source("synthetic", "synthetic", name="words"),)),
                            steps=1, dtype="float32", optimizer=OptimizerConfig(warmup_steps=0))
    return CompareConfig(base, {"in_context": {}},
                         WorldQuestions(prompts=2, queries=1, families=("words",)))
"""


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("side_by_side", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_at_most_so_many_at_once_and_every_end_is_said(script, monkeypatch, tmp_path, capsys):
    codes, running, most = {"good": 0, "bad": 3, "last": 0}, [], []

    def start(name, place, logs, options):
        assert logs.is_dir() and place in (0, 1)
        process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({codes[name]})"])
        running.append(process)
        most.append(sum(one.poll() is None for one in running))
        return process

    monkeypatch.setattr(script, "start", start)
    options = argparse.Namespace(at_once=2, seconds=None)
    assert not script.run({name: name for name in codes}, tmp_path / "logs", options)
    said = capsys.readouterr().out
    assert "good: done" in said and "bad: ended with 3" in said and "last: done" in said
    assert len(most) == 3 and max(most) <= 2


def test_what_is_not_finished_in_time_is_stopped(script, monkeypatch, tmp_path, capsys):
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = []
    monkeypatch.setattr(
        script, "start", lambda *_: started.append(subprocess.Popen(sleep)) or started[-1]
    )
    options = argparse.Namespace(at_once=1, seconds=0.2)
    assert not script.run({"long": "a", "waiting": "b"}, tmp_path / "logs", options)
    said = capsys.readouterr().out
    assert started[0].returncode == -15 and len(started) == 1
    assert "long: ended with -15" in said and "not begun: waiting." in said


def test_no_part_outlives_an_interruption(script, monkeypatch, tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = []
    monkeypatch.setattr(
        script, "start", lambda *_: started.append(subprocess.Popen(sleep)) or started[-1]
    )

    def interrupted(seconds):
        raise KeyboardInterrupt

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=interrupted)
    monkeypatch.setattr(script, "time", clock)
    options = argparse.Namespace(at_once=2, seconds=None)
    with pytest.raises(KeyboardInterrupt):
        script.run({"one": "a", "two": "b", "waiting": "c"}, tmp_path / "logs", options)
    assert [process.returncode for process in started] == [-15, -15]


def test_parts_of_one_folder_run_one_after_another(script, monkeypatch, tmp_path):
    at_once = []

    def start(name, place, logs, options):
        at_once.append([one for one, process in running.items() if process.poll() is None])
        running[name] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
        return running[name]

    running: dict[str, subprocess.Popen] = {}
    monkeypatch.setattr(script, "start", start)
    options = argparse.Namespace(at_once=3, seconds=None)
    parts = {"lora_gen-0": "x", "tuned-0": "x", "lora_gen-1": "y"}
    assert script.run(parts, tmp_path / "logs", options)
    assert list(running) == ["lora_gen-0", "lora_gen-1", "tuned-0"]
    assert at_once[1] == ["lora_gen-0"] and "lora_gen-0" not in at_once[2]


@pytest.mark.parametrize(
    ("cores", "at_once", "shares"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([0, 2, 4, 5], 2, [[0, 4], [2, 5]]),
        ([3, 7], 3, [[3], [7], [3]]),
    ],
)
def test_every_place_has_cores(script, cores, at_once, shares):
    assert [script.share(cores, place, at_once) for place in range(at_once)] == shares


@pytest.mark.slow
def test_rows_are_measured_and_kept(tmp_path):
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    command = [sys.executable, str(SCRIPT), "exp.py", "--pin"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "bare: done" in first.stdout and "in_context: done" in first.stdout
    kept = json.loads((tmp_path / "runs" / "results" / "in_context.json").read_text())
    assert kept["result"]["splits"] and "Asking" in (tmp_path / "runs/logs/bare.log").read_text()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout == ""
