"""The table of speed: its rows are commands that exist, and finished ones are kept."""

import importlib.util
import json
from pathlib import Path

import pytest
import tyro

from lorage_jax.cli import Command

SCRIPT = Path(__file__).parents[2] / "experiments" / "speed" / "table.py"
SIDE = {"seconds": 0.5, "matmul_share": 0.25, "library": "x"}


@pytest.fixture
def table():
    spec = importlib.util.spec_from_file_location("speed_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_commands(table):
    for _, arguments in table.ROWS.values():
        made = tyro.cli(Command, args=["bench", *arguments, "--model", "m"]).measurement
        assert made.model == Path("m")


def test_finished_rows_are_kept(table, tmp_path, monkeypatch):
    asked = []

    def measure(row, model, dtype, repeats, noisy):
        asked.append((row, model, dtype, repeats, noisy))
        if row == table.GENERATOR:
            old = {"seconds": 2.0, "commit": "abc"}
            return {"lorage": {"seconds": 1.0}, "before": old, "ratio": 2.0,
                    "largest_spread_within_one": 1.5}  # fmt: skip
        return {"lorage": SIDE, "transformers": SIDE | {"seconds": 1.25}, "ratio": 2.5,
                "largest_spread_within_one": 1.25, "cpu_share_of_others": 0.04}  # fmt: skip

    monkeypatch.setattr(table, "measure", measure)
    where = ["--model", "some/model", "--out", str(tmp_path), "--dtypes", "bfloat16"]
    table.main(["score", *where])
    table.main([*where, "--repeats", "3"])
    names = [*table.ROWS, table.GENERATOR]
    rest = [name for name in names if name != "score"]
    assert [row for row, *_ in asked] == ["score", *rest]
    assert {call[1:] for call in asked[1:]} == {(Path("some/model"), "bfloat16", 3, False)}
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["model"] == "model" and set(found["results"]["bfloat16"]) == set(names)
    page = (tmp_path / "speed.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == (
        "| a prompt of 200 tokens | 500.0 ms | 25% | 1.25 s (x) | 25% | **2.50** | 0.95 | 1.25 "
        "| 4% |"
    )
    assert "| 1.00 s |  | 2.00 s (lorage at abc) |  | **2.00** | 1.8 | 1.50 |  |" in rows[-1]
    with pytest.raises(SystemExit, match=r"speed.json is of model; give --out for other\."):
        table.main(["score", *where, "--model", "other"])
