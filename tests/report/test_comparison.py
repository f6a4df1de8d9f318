"""The table of a comparison: means over seeds, gaps on the same prompts, derived properties."""

import dataclasses

import numpy as np
import pytest

from lorage_jax.compare.measure import combined
from lorage_jax.config import CompareConfig, DataConfig, ExperimentConfig, Source
from lorage_jax.report.comparison import to_markdown
from lorage_jax.report.page import DASH

DATA = DataConfig((Source("synthetic", "synthetic"),))
CONFIG = CompareConfig(
    ExperimentConfig(cloud="a", edge="b", out="out", data=DATA, steps=100),
    {"lora_gen": {}, "lora": {}},
)


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
    made = combined(CONFIG, found, {"lora_gen"})
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
    # Of the difference over prompts, and of our two seeds, 1.0 and 0.5.
    over_prompts = np.std([0.0] * 12 + [0.5] * 12, ddof=1) / 24**0.5
    assert gap["gap"] == pytest.approx(-0.25) and not gap["significant"]
    assert gap["stderr"] == pytest.approx(np.hypot(over_prompts, 0.25))
    control = result["controls"]["shuffled"]["splits"]["x"]
    assert control["exact_match"] == 0 and control["gap"]["gap"] == -0.75


@pytest.mark.parametrize("row", [{"after": "lora_gen"}, {"trained": "b-{seed}"}, {}])
def test_rows_of_the_same_runs_are_paired_by_seed(row):
    """Their seeds differ by 0.5, which says nothing about a row that follows them all."""
    rows = {"lora_gen": {"trained": "b-{seed}"} if "trained" in row else {}}
    config = dataclasses.replace(CONFIG, methods={**rows, "row": {"method": "tuned_cards", **row}})
    ours = [figures([x] * 24, shuffled=[x - 0.25] * 24) for x in (0.25, 0.5, 0.75)]
    other = [figures([x] * 24) for x in (0.45, 0.7, 0.95)]
    made = combined(config, {"bare": [figures([0.0] * 24)], "lora_gen": ours, "row": other}, set())
    gap = made["methods"]["row"]["splits"]["x"]["gap"]
    assert gap["gap"] == pytest.approx(0.2) and gap["significant"] is bool(row)
    assert gap["stderr"] == pytest.approx(0.0 if row else (2 / 3) ** 0.5 / 4)
    control = made["controls"]["shuffled"]["splits"]["x"]["gap"]
    assert control["significant"] and control["stderr"] == pytest.approx(0, abs=1e-9)
    assert not made["methods"]["bare"]["splits"]["x"]["gap"]["significant"]  # t is 3.5, below 4.3
    fewer = combined(config, {"lora_gen": ours, "bare": other[:1], "row": other[:2]}, set())
    assert not fewer["methods"]["row"]["splits"]["x"]["gap"]["significant"]  # other seeds


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
    what = combined(three, {"bare": [figures([0.0])]}, set())["methods"]["bare"]["what"]
    assert what.endswith("; 3 solved samples after every prompt")
    assert [cell.strip() for cell in text.split("| lora |")[3].split("|")[:6]] == [
        *("5", "10.0", "2.00", "3.0", "1.25", "1")
    ]


def test_gaps_are_shown_with_their_errors(result):
    gaps = to_markdown(result).partition("**Gap to lora_gen**")[2].partition("\n\n**")[0]
    cells = dict(
        line.strip("| ").split(" | ") for line in gaps.splitlines() if line.count("|") == 3
    )
    del cells["method"], cells["---"]
    assert cells == {
        "bare": "-0.750 ± 0.255",
        "in_context": "+0.250 ± 0.255",
        "lora": "-0.250 ± 0.255",
        "control: shuffled": "-0.750 ± 0.255",
    }
    split = {key: x for key, x in result["methods"]["lora"]["splits"]["x"].items() if key != "gap"}
    alone = {"lora": {**result["methods"]["lora"], "splits": {"x": split}}}
    assert "Gap to" not in to_markdown({"methods": alone, "controls": {}})


def test_devices_are_named_if_they_differ(result):
    def text(**devices):
        methods = {name: result["methods"][name] | {"devices": on} for name, on in devices.items()}
        return to_markdown({**result, "methods": methods})

    assert "Asked on" not in text(bare=["cpu"], lora=["cpu"])
    assert "Asked on NVIDIA H200: lora." in text(bare=["cpu"], lora=["NVIDIA H200"])


def test_a_table_without_costs(result):
    methods = {
        name: {key: value for key, value in one.items() if key != "seconds_per_request"}
        for name, one in result["methods"].items()
    }
    text = to_markdown({**result, "methods": methods})
    assert "Costs" in to_markdown(result) and "Costs" not in text
    assert "unseen tasks without training" in text
