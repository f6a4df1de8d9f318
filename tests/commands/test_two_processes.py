"""`lorage specialize`, `compare` and `export` in two processes: the results of one."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import lorage_jax as lg
from lorage_jax import nano
from tests.commands.test_compare import WRITTEN, tasks
from tests.processes import finish, join

PROMPT = "Put bars on each side of words. Write all the words in upper case."


def both(command, own=(), devices=1):
    """Runs a command in two processes; `own` are options of the first."""
    found = finish(join([[*command, *own], command], devices))
    assert [code for code, _, _ in found] == [0, 0], found
    shown = [[x for x in text.splitlines() if "[Gloo]" not in x] for _, text, _ in found]
    assert shown[0] and not shown[1], "only the main process prints"


@pytest.mark.slow
def test_two_processes_specialise_as_one(tmp_path):
    """Alone, with the cloud whole; and on two devices of two processes that share its weights."""
    (tmp_path / "prompt.txt").write_text(PROMPT)
    command = ["specialize", "--generator", "nano", "--prompt", tmp_path / "prompt.txt", "--out"]
    (alone,) = finish(join([[*command, tmp_path / "one"]], devices=1))
    assert alone[0] == 0, alone
    both([*command, tmp_path / "two"])
    both([*command, tmp_path / "shared", "--tensor", "2"])
    one, two, shared = (tmp_path / name for name in ("one", "two", "shared"))
    assert (one / "card.json").read_bytes() == (two / "card.json").read_bytes()
    weights = load_file(one / "merged" / "model.safetensors")
    for name, array in load_file(two / "merged" / "model.safetensors").items():
        np.testing.assert_array_equal(array, weights[name])
    cards = [lg.load_card(folder / "card.json") for folder in (one, shared)]
    np.testing.assert_allclose(cards[1].gates, cards[0].gates, atol=1e-5)
    assert json.loads((shared / "report.json").read_text())["timings"]["specialize"] > 0
    wrong = finish(join([[*command, tmp_path / "no", "--tensor", "3"]] * 2, devices=1))
    assert [code for code, _, _ in wrong] == [1, 1]
    assert "expected a number that divides the 2 devices" in wrong[0][2]
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_two_processes_compare_as_one(tmp_path):
    """Questions are shared; times are the main process's."""
    (tmp_path / "exp.py").write_text(WRITTEN)
    lines = "".join(json.dumps(task) + "\n" for task in tasks())
    (tmp_path / "tasks.jsonl").write_text(lines)

    def command(name):
        return ["compare", tmp_path / "exp.py", "--out", tmp_path / name]

    both(command("two"), ["--json", tmp_path / "two.json"])
    (alone,) = finish(join([[*command("one"), "--json", tmp_path / "one.json"]], devices=1))
    assert alone[0] == 0, alone
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["methods"].keys() == two["methods"].keys()
    for name, wanted in one["methods"].items():
        found = two["methods"][name]
        assert found.pop("seconds_per_request") and wanted.pop("seconds_per_request")
        assert found == wanted
    assert one["controls"] == two["controls"]


@pytest.mark.slow
def test_two_processes_export_one_file(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed (extra: gguf)")
    both(["export", nano.EDGE, "--gguf", tmp_path / "edge.gguf"])
    assert lg.load_model(tmp_path / "edge.gguf").config.layers > 0
    assert [path.name for path in tmp_path.iterdir()] == ["edge.gguf"]
