"""The tables of the real model: evaluations are kept, and every figure comes from one."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from lorage_jax import cli
from lorage_jax.data.task_table import paper_tasks
from lorage_jax.evaluate.arms import CONTROLS
from lorage_jax.evaluate.paired import Gap
from lorage_jax.evaluate.results import ArmResult, EvalResult, TaskScore, ToolResult, ToolScore

FOLDER = Path(__file__).parents[2] / "experiments" / "real"
TASKS = [task.name for task in paper_tasks()]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Loads a script of the folder, which runs in an empty one."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tables", raising=False)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("tables", None)


def answered(monkeypatch, result):
    """What `lorage eval` was asked, instead of running it; it writes `result`."""
    asked = []

    def main(arguments):
        asked.append(arguments)
        file = Path(arguments[arguments.index("--json") + 1])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result.to_json()))
        return 0

    monkeypatch.setattr(cli, "main", main)
    return asked


def arm(first):
    tasks = {
        name: TaskScore({"acc": first + i / 100, "acc_stderr": 0.01}, n=4, edge_tokens=float(i))
        for i, name in enumerate(TASKS)
    }
    summary = {"ave": first, "ave_stderr": 0.02, "har": first / 2, "seen": 0.1, "unseen": 0.2}
    return ArmResult("what it does", tasks, summary)


def test_table_2(script, monkeypatch, tmp_path, capsys):
    names = ("lora_gen", "in_context", "few_shot", *CONTROLS)
    result = EvalResult(
        model={"edge": "an edge", "generator": "g"},
        main="lora_gen",
        arms={name: arm(0.3 + i / 10) for i, name in enumerate(names)},
        gaps={"bare": {"ave": Gap(0.125, 0.0625, True)}},
        words=["It helps."],
    )
    asked = answered(monkeypatch, result)
    table = script("table2")
    for limit in ("4", "4", "5"):  # the second time, it is there
        monkeypatch.setattr(sys, "argv", ["x", "--limit", limit, "--json", "here.json"])
        table.main()
    assert [words[words.index("--limit") + 1] for words in asked] == ["4", "5"]
    assert asked[0][asked[0].index("--tasks") + 1].split(",") == TASKS
    found = json.loads((tmp_path / "here.json").read_text())
    assert set(found["methods"]) == {"lora_gen", "in_context", "few_shot"}
    assert set(found["controls"]) == set(CONTROLS)
    row = found["methods"]["lora_gen"]
    assert row["splits"][TASKS[2]] == {"acc": pytest.approx(0.32), "stderr": 0.01, "n": 4}
    assert (row["ave"], row["edge_tokens"]) == (0.3, 3.5)
    assert found["gaps"] == {"bare": {"gap": 0.125, "stderr": 0.0625}}
    shown = (tmp_path / "here.md").read_text()
    assert shown in capsys.readouterr().out
    assert (
        "| **+ LoRA-Gen** | 30.0 | 31.0 | 32.0 |" in shown and "| 30.0 ± 2.0 | 15.0 | 4 |" in shown
    )
    assert "the paper: TinyLlama-1.1B, LoRA-Gen | 35.8 |" in shown and "- It helps." in shown


def test_table_2_of_other_methods(script, monkeypatch, tmp_path):
    arms = {name: arm(first) for name, first in (("lora_gen", 0.3), ("lora", 0.4))}
    asked = answered(monkeypatch, EvalResult(model={"edge": "an edge"}, main="lora_gen", arms=arms))
    table = script("table2")
    for folder, digest in (("some", "a"), ("other", "b")):  # of one name
        (tmp_path / folder / "lora" / "lora").mkdir(parents=True)
        (tmp_path / folder / "lora" / "config.json").write_text('{"method": "lora", "steps": 1}')
        (tmp_path / folder / "lora" / "lora" / "lorage.json").write_text(f'"{digest}"')
    monkeypatch.setattr(sys, "argv", ["x", "--run", "some/lora", "--json", "here.json"])
    table.main()
    assert asked[0][asked[0].index("--run") + 1] == "some/lora"
    assert {"--no-baseline", "--no-controls"} < set(asked[0])
    found = json.loads((tmp_path / "here.json").read_text())
    assert set(found["methods"]) == {"lora_gen", "lora"} and not found["controls"]
    assert "| + one LoRA | 40.0 |" in (tmp_path / "here.md").read_text()
    monkeypatch.setattr(sys, "argv", ["x", "--run", "other/lora", "--json", "there.json"])
    table.main()
    assert len(asked) == 2
    names = {name: script("suites").config(name).method for name in script("suites").METHODS}
    assert names == {"lora": "lora", "lora_in_context": "lora", "lora_gen": "lora_gen"}


def test_table_3(script, monkeypatch, tmp_path):
    keys = ("thought", "action", "args", "success", "iou", "average")

    def score(first):
        values = {key: first + i / 100 for i, key in enumerate(keys)}
        both = {"official": values, "strict": {key: v / 2 for key, v in values.items()}}
        errors = {mode: dict.fromkeys(keys, 0.05) for mode in both}
        return ToolScore(both, errors, n=4, edge_tokens=40.0, compression=8.25)

    sets = {
        name: ToolResult({"lora_gen": score(0.5), "in_context": score(first), "bare": score(0.1)})
        for name, first in (("seen", 0.3), ("unseen", 0.2))
    }
    answered(monkeypatch, EvalResult(model={"edge": "an edge", "generator": "g"}, gpt4tools=sets))
    table = script("table3")
    monkeypatch.setattr(sys, "argv", ["x", "--limit", "4", "--json", "here.json"])
    table.main()
    found = json.loads((tmp_path / "here.json").read_text())
    assert set(found["methods"]) == {"lora_gen", "in_context"} and set(found["controls"]) == {
        "bare"
    }
    splits = found["methods"]["in_context"]["splits"]
    assert splits["unseen"]["strict"]["success"] == pytest.approx(0.115)
    shown = (tmp_path / "here.md").read_text()
    line = "| **+ LoRA-Gen** | 50.0 | 51.0 | 52.0 | 53.0 ± 5.0 | 54.0 | 55.0 | 40 | 8.2x |"
    assert shown.count(line) == 2
    assert shown.count("the paper (Gemma-2B): LoRA-Gen |") == 2  # beside the official scorer only


def test_a_failed_evaluation_ends_the_table(script, monkeypatch):
    script("table2")
    tables = sys.modules["tables"]
    monkeypatch.setattr(cli, "main", lambda arguments: 1)
    with pytest.raises(SystemExit, match="1"):
        tables.evaluated("x", tables.Options(1, "smollm2", Path("x.json")), [])
