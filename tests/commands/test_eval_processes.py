"""`lorage eval` in several processes: the same result as in one."""

import json

import pytest

from lorage_jax.world.tools import draw
from tests.processes import finish, join

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_score_as_one(world, tmp_path, count):
    """Choices, free answers and tool calls in all arms."""

    def row(name, **more):
        asked = [{"input": f"{name} {'x' * i}", "output": "ab", **more} for i in range(9)]
        return {"name": name, "definition": [f"Do {name}."], "instances": asked}

    path, data = tmp_path / "tasks.jsonl", tmp_path / "data" / "gpt4tools"
    rows = [row("free"), row("choosing", choices=["ab", "c"])]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    data.mkdir(parents=True)
    (data / "test_unseen.json").write_text(json.dumps(draw("unseen", 4, seed=1)))
    asked = ["eval", "--generator", world.generator, "--tasks", f"{path},gpt4tools"]
    asked += ["--data", data.parent, "--shots", "1", "--batch-tokens", "256"]
    asked += ["--max-new-tokens", "6"]

    def result(name):
        values = json.loads((tmp_path / name).read_text())
        return _without_times({key: values[key] for key in ("arms", "gaps", "cards", "gpt4tools")})

    several = [*asked, "--json", tmp_path / "all.json", "--samples", tmp_path / "all.jsonl"]
    told = finish(join([several] * count, devices=1))
    assert [code for code, _, _ in told] == [0] * count, told
    assert ["2 tasks of" in text for _, text, _ in told] == [True] + [False] * (count - 1)
    (alone,) = finish(join([[*asked, "--json", tmp_path / "one.json"]], devices=1))
    assert alone[0] == 0, alone
    assert result("all.json") == result("one.json")
    assert not list(tmp_path.glob("*progress*"))
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert len(lines) > 20


def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if "second" not in k}
    return [_without_times(one) for one in value] if isinstance(value, list) else value
