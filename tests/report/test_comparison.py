"""The table of a comparison: means over seeds, gaps on the same prompts, derived properties."""

import dataclasses
import json
from itertools import pairwise

import pytest

from lorage_jax import nano
from lorage_jax.config import CompareConfig, DataConfig, ExperimentConfig, Source
from lorage_jax.errors import ConfigError, OutputError
from lorage_jax.report.comparison import to_markdown
from lorage_jax.report.page import DASH
from lorage_jax.world import compare, kept
from lorage_jax.world.compare import combined
from lorage_jax.world.parts import all_parts, check_untrained

DATA = DataConfig((Source("synthetic", "synthetic"),))
CONFIG = CompareConfig(
    ExperimentConfig(cloud="a", edge="b", out="out", data=DATA, steps=100),
    {"lora_gen": {}, "lora": {}},
)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"setings": None}, r"has a field 'setings'; expected .* did you mean settings"),
        ({"seed": 3}, r"the row lora sets seed, which the comparison sets"),
        ({"samples": -1}, r"samples of lora is -1"),
        (None, r"the row lora is None; expected a dictionary"),
    ],
)
def test_a_row_with_a_field_that_no_experiment_has(row, says):
    with pytest.raises(ConfigError, match=says):
        CompareConfig(CONFIG.base, {"lora": row})


def figures(
    by_prompt, tokens=10.0, merged=True, unseen=False, parameters=5, frozen=("edge",), **controls
):
    def split(values):
        mean = sum(values) / len(values)
        return {
            "x": {
                "exact_match": mean,
                "stderr": 0.5,
                "by_prompt": values,
                "edge_tokens": tokens,
                "context_tokens": 40.0,
            }
        }

    return {
        "trained_parameters": parameters,
        "merged": merged,
        "unseen_tasks": unseen,
        "frozen": list(frozen),
        "splits": split(by_prompt),
        "controls": {name: split(values) for name, values in controls.items()},
    }


@pytest.fixture(scope="module")
def result():
    ours = [
        figures([1.0] * 24, unseen=True, frozen=("cloud", "edge"), shuffled=[0.0] * 24),
        figures([1.0] * 12 + [0.0] * 12, frozen=("cloud", "edge"), shuffled=[0.0] * 24),
    ]
    found = {
        "bare": [figures([0.0] * 24, parameters=0, merged=None)],
        "lora_gen": ours,
        "in_context": [figures([1.0] * 24, 40.0, merged=None, unseen=True, parameters=0)],
        "lora": [figures([0.5] * 24)],
    }
    made = combined(CONFIG, found)
    for method in made["methods"].values():
        costs = {"flops_per_request": 3e6, "parameter_bytes": 2**20, "cache_bytes": 2**18}
        method |= costs | {"seconds_per_request": 0.002}
    return made


def test_seeds_are_averaged_and_gaps_are_paired(result):
    methods = {name: one["splits"]["x"] for name, one in result["methods"].items()}
    assert methods["lora_gen"] == {
        "exact_match": 0.75,
        "stderr": 0.25,
        "over": "seeds",
        "prompts": 24,
    }
    assert methods["lora"]["over"] == "prompts" and methods["lora"]["stderr"] == 0.5
    gap = methods["lora"]["gap"]
    assert gap["gap"] == pytest.approx(-0.25) and gap["significant"]
    control = result["controls"]["shuffled"]["splits"]["x"]
    assert control["exact_match"] == 0 and control["gap"]["gap"] == -0.75


def test_properties_are_derived(result):
    methods = result["methods"]
    assert methods["lora_gen"]["bigger_model"] and not methods["lora"]["bigger_model"]
    assert [one["seeds"] for one in methods.values()] == [0, 2, 0, 1]
    text = to_markdown(result)
    shown = {
        line.split("|")[1].strip(): [cell.strip(" *") for cell in line.split("|")[2:6]]
        for line in text.partition("unseen tasks without training")[2].splitlines()
        if line.count("|") > 6
    }
    assert shown["in_context"] == ["no", DASH, "yes", "no"]
    assert shown["**lora_gen**"] == ["yes", "yes", "yes", "yes"]
    assert shown["lora"] == ["yes", "yes", "no", "no"]
    three = dataclasses.replace(CONFIG, methods={"bare": {"samples": 3}})
    what = combined(three, {"bare": [figures([0.0])]})["methods"]["bare"]["what"]
    assert what.endswith("; 3 solved samples after every prompt")
    assert [cell.strip() for cell in text.split("| lora |")[2].split("|")[:6]] == [
        *("5", "10.0", "2.00", "3.0", "1.25", "1")
    ]


def test_a_table_without_costs(result):
    methods = {
        name: {key: value for key, value in one.items() if key != "seconds_per_request"}
        for name, one in result["methods"].items()
    }
    text = to_markdown({**result, "methods": methods})
    assert "Costs" in to_markdown(result) and "Costs" not in text
    assert "unseen tasks without training" in text


def test_figures_are_kept_and_belong_to_their_settings(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(compare, "_figures", lambda *_: said.append(1) or {"x": 1})
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), out=str(tmp_path)
    )
    config = dataclasses.replace(CONFIG, base=base)
    _, part = all_parts(config, ["lora"], 1)
    assert compare.measured(config, part, 3) == compare.measured(config, part, 3) == {"x": 1}
    assert len(said) == 1
    assert compare.measured(config, part) == {"x": 1} and len(said) == 2
    file = tmp_path / "results" / "lora-0-3.json"
    file.write_text(file.read_text().replace('"figures": 2', '"figures": 1'))
    assert compare.measured(config, part, 3) == {"x": 1} and len(said) == 3  # of an older version
    other = dataclasses.replace(config, base=dataclasses.replace(base, steps=101))
    with pytest.raises(OutputError, match=r"lora-0-3\.json was measured with other settings"):
        compare.measured(other, all_parts(other, ["lora"], 1)[1], 3)


def test_figures_may_be_kept_beside_the_code(tmp_path, monkeypatch):
    """Those of all questions; a check with a limit leaves nothing there."""
    monkeypatch.setattr(compare, "_figures", lambda *_: {"x": 1})
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), out=str(tmp_path / "runs")
    )
    config = dataclasses.replace(CONFIG, base=base, figures=str(tmp_path / "kept"))
    part = all_parts(config, ["lora"], 1)[1]
    compare.measured(config, part, 3)
    assert not (tmp_path / "kept").exists()
    compare.measured(config, part)
    origin = json.loads((tmp_path / "kept" / "lora-0.json").read_text())["provenance"]
    assert origin["machine"]["cpu_cores"] and "command" not in origin


def test_costs_are_kept_for_the_rows_of_one_run(tmp_path):
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), out=str(tmp_path)
    )
    config = dataclasses.replace(CONFIG, base=base)
    runs = []

    def costs(config, rows):
        def measure():
            runs.append(rows)
            return {row: {"seconds_per_request": len(runs)} for row in ("bare", *rows)}

        return kept.costs(config, all_parts(config, rows, 2), None, measure)

    both = costs(config, ["lora", "lora_gen"])
    assert list(both) == ["bare", "lora", "lora_gen"]
    assert costs(config, ["lora"]) == {row: both[row] for row in ("bare", "lora")}
    assert len(runs) == 1, "measured again"
    other = dataclasses.replace(config, base=dataclasses.replace(base, steps=101))
    assert costs(other, ["lora"])["lora"] == {"seconds_per_request": 2}
    assert costs(other, ["lora", "lora_gen"])["lora"] == {"seconds_per_request": 3}


def test_figures_belong_to_a_finished_result(tmp_path):
    """Those of a folder of LoRAs to all of them and the examples; without it, one clear error."""
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    rows = {"lorahub": {"trained": str(tmp_path / "loras")}}
    config = dataclasses.replace(CONFIG, base=base, methods=rows)
    found = all_parts(config, ["lorahub"], 2)
    with pytest.raises(ConfigError, match=r"lorahub uses .*loras, which is not a folder. Train it"):
        check_untrained(config, found)
    files = [tmp_path / "loras" / name for name in ("00/lora/x.safetensors", "examples.jsonl")]
    files[0].parent.mkdir(parents=True)
    seen = []
    for file, content in (*zip(files, ("a", "b"), strict=True), (files[0], "c"), (files[1], "d")):
        file.write_text(content)
        seen.append(kept.identity(config, found[1], None)["trained"])
    check_untrained(config, found)
    assert [len(one) for one in seen] == [1, 2, 2, 2]
    assert all(a != b for a, b in pairwise(seen))


def test_parts_of_a_comparison():
    found = all_parts(CONFIG, ["lora_gen", "lora"], 2)
    assert [one.name for one in found] == ["bare", "lora_gen-0", "lora_gen-1", "lora-0", "lora-1"]
    assert found[-1].experiment.method == "lora" and found[-1].experiment.seed == 1
    assert found[-1].experiment.out == "out/lora-1"
    assert [one.name for one in all_parts(CONFIG, ["in_context", "bare"], 2)] == ["in_context", "bare"]
    assert not any(one.samples for one in found)
    rows = {
        "three": {"method": "in_context", "samples": 3},
        "shown": {"method": "lora", "steps": 70},
    }
    more = dataclasses.replace(CONFIG, methods=rows)
    _, three, shown = parts(more, ["three", "shown"], 1)
    assert (three.name, three.method, three.samples) == ("three", "in_context", 3)
    assert shown.name == "shown-0" and shown.experiment is not None
    run = shown.experiment
    assert (run.method, run.steps, run.out) == ("lora", 70, "out/shown-0")
    with pytest.raises(ConfigError, match="samples of x is -1; expected a number, 0 or more"):
        dataclasses.replace(CONFIG, methods={"x": {"samples": -1}})
    with pytest.raises(ConfigError, match="no method 'direct'; expected lora_gen, lora"):
        parts(CONFIG, ["direct"], 1)
    with pytest.raises(ConfigError, match="no method 'nothing'"):
        parts(CONFIG, ["nothing"], 1)
    with pytest.raises(ConfigError, match="nothing was measured"):
        combined(CONFIG, {})
