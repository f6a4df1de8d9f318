"""`lorage specialize`, `compare` and `export` in several processes: the results of one."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import lorage_jax as lg
from lorage_jax import nano
from tests.commands.test_compare import EXPERIMENT, WRITTEN, tasks
from tests.processes import finish, join

PROMPT = "Put bars on each side of words. Write all the words in upper case."


def together(command, own=(), count=2):
    """Runs a command in several processes; `own` are options of the first."""
    found = finish(join([[*command, *own], *[command] * (count - 1)], devices=1))
    assert [code for code, _, _ in found] == [0] * count, found
    shown = [[x for x in text.splitlines() if "[Gloo]" not in x] for _, text, _ in found]
    assert shown[0] and not any(shown[1:]), "only the main process prints"


def alone(command):
    """Runs a command in one process."""
    (one,) = finish(join([command], devices=1))
    assert one[0] == 0, one


@pytest.mark.slow
def test_processes_specialise_as_one(tmp_path):
    """With the cloud whole, in two and four; and with two that share its weights."""
    (tmp_path / "prompt.txt").write_text(PROMPT)
    command = ["specialize", "--generator", "nano", "--prompt", tmp_path / "prompt.txt", "--out"]
    alone([*command, tmp_path / "one"])
    together([*command, tmp_path / "two"])
    together([*command, tmp_path / "four"], count=4)
    together([*command, tmp_path / "shared", "--tensor", "2"])
    one, shared = tmp_path / "one", tmp_path / "shared"
    weights = load_file(one / "merged" / "model.safetensors")
    for several in (tmp_path / "two", tmp_path / "four"):
        assert (one / "card.json").read_bytes() == (several / "card.json").read_bytes()
        for name, array in load_file(several / "merged" / "model.safetensors").items():
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

    together(command("two"), ["--json", tmp_path / "two.json"])
    alone([*command("one"), "--json", tmp_path / "one.json"])
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["methods"].keys() == two["methods"].keys()
    for name, wanted in one["methods"].items():
        found = two["methods"][name]
        assert found.pop("seconds_per_request") and wanted.pop("seconds_per_request")
        assert found == wanted
    assert one["controls"] == two["controls"]


@pytest.mark.slow
def test_two_processes_train_what_they_compare(tmp_path):
    """Sums of gradients are rounded otherwise; two steps do not make that visible in answers."""
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    command = ["compare", tmp_path / "exp.py", "--methods", "lora", "--limit", "3", "--out"]
    together([*command, tmp_path / "two"], ["--json", tmp_path / "two.json"])
    alone([*command, tmp_path / "one", "--json", tmp_path / "one.json"])
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["methods"]["lora"]["splits"] == two["methods"]["lora"]["splits"]
    factors = [
        load_file(tmp_path / name / "lora-0" / "lora" / "adapter_model.safetensors")
        for name in ("one", "two")
    ]
    assert factors[0].keys() == factors[1].keys()
    for name, value in factors[0].items():
        np.testing.assert_allclose(factors[1][name], value, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_two_processes_export_one_file(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed (extra: gguf)")
    together(["export", nano.EDGE, "--gguf", tmp_path / "edge.gguf"])
    assert lg.load_model(tmp_path / "edge.gguf").config.layers > 0
    assert [path.name for path in tmp_path.iterdir()] == ["edge.gguf"]
