"""The script of speed on a GPU: parts that fail, hang or do not fit cost nothing else."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lorage_jax.bench.train import random_batch
from lorage_jax.config import DataConfig, Source
from tests.bench.shapes import tiny

SCRIPT = Path(__file__).parents[2] / "experiments" / "speed" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as when it is run
    spec = importlib.util.spec_from_file_location("speed_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lost_parts_cost_only_themselves(gpu, tmp_path, monkeypatch):
    names = ["good", "hangs", "crashes", "last"]
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(names, (False, 2, None)))
    file = tmp_path / "gpu.json"
    gpu.update(file, tiny=True)
    code = f"""
import importlib.util, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(SCRIPT.parent)!r})
spec = importlib.util.spec_from_file_location("gpu", {str(SCRIPT)!r})
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)
for name in sys.argv[1:]:
    gpu.update(Path({str(file)!r}), running={{"part": name, "since": time.time()}})
    time.sleep(60 * (name == "hangs"))
    if name == "crashes":
        print("a kernel failed", flush=True)
        os._exit(7)
    gpu.record(Path({str(file)!r}), name, {{"wall_seconds": 1.0}})
"""
    gpu.supervise(names, file, time.time() + 40, lambda group: [sys.executable, "-c", code, *group])
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == names
    assert parts["good"] == parts["last"] == {"wall_seconds": 1.0}
    assert parts["hangs"]["error"].startswith("stopped: over 2 s")
    assert parts["crashes"]["error"].startswith("the process ended with code 7")
    assert "a kernel failed" in parts["crashes"]["error"]


def test_no_time_is_left(gpu, tmp_path):
    file = tmp_path / "gpu.json"
    gpu.update(file, tiny=True)
    gpu.supervise(["ceilings", "score"], file, time.time() - 1, lambda group: ["not run"])
    found = json.loads(file.read_text())
    assert all(part == {"skipped": "no time was left"} for part in found["parts"].values())
    assert "skipped score: no time was left" in gpu.table(found)


def test_errors_and_goals_are_recorded(gpu, tmp_path, monkeypatch):
    def broken(setting):
        raise ValueError("too small a card")

    monkeypatch.setenv("LORAGE_CACHE", "off")
    for name in ("HF_HUB_OFFLINE", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setitem(gpu.PARTS, "merge", (False, 30, broken))
    file = tmp_path / "gpu.json"
    gpu.run_parts(["merge", "ceilings"], file, tmp_path, time.time() + 60, tiny=True)
    found = json.loads(file.read_text())
    assert found["parts"]["merge"]["error"].endswith("ValueError: too small a card\n")
    assert found["parts"]["ceilings"]["copy_bytes_per_second"] > 0
    assert "FAILED  merge: ValueError: too small a card" in gpu.table(found)
    goal = sys.modules["gpu_parts"].goal
    assert goal("x", 3.0, 3)["met"] and not goal("x", 2.9, 3)["met"]
    assert not goal("x", None, 3)["met"]


def test_a_packed_batch_is_full_and_owned():
    model = tiny("llama", 2)
    data = DataConfig(
        sources=(Source("synthetic", "synthetic"),),
        prompts_per_batch=4,
        queries_per_prompt=2,
        max_prompt_tokens=8,
        max_query_tokens=6,
        packed_rows=2,
    )
    batch = random_batch(data, model, model)
    (prompts,), (queries,) = batch.prompts, batch.queries
    assert prompts.tokens.shape == (2, 16) and queries.tokens.shape == (2, 24)
    assert prompts.mask.all() and queries.mask.all()
    assert queries.owner.shape == (2, 4)
    assert np.bincount(queries.owner.flat).tolist() == [2, 2, 2, 2]
    assert queries.loss_mask.sum() == 8 * 3 and not queries.loss_mask[queries.positions < 3].any()
