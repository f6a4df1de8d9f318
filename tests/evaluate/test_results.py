"""Typed results: files of any version load, and are written with today's names."""

import dataclasses
import json
from pathlib import Path

import pytest

from lorage_jax.errors import DataError
from lorage_jax.evaluate.paired import Gap
from lorage_jax.evaluate.results import OLD_ARMS, EvalResult, TaskScore, ToolScore, current_arm

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def renamed(value):
    """The same JSON with old names of arms replaced by new ones."""
    if not isinstance(value, dict):
        return value
    return {current_arm(key): renamed(one) for key, one in value.items()}


@pytest.fixture
def recorded():
    path = RESULTS / "eval_real_smoke.json"
    if not path.is_file():
        pytest.skip("experiments/ is only in a checkout")
    return json.loads(path.read_text("utf-8"))


def test_a_recorded_file_loads_and_keeps_everything(recorded):
    result = EvalResult.from_json(recorded, "here")
    assert list(result.arms) == [current_arm(name) for name in recorded["arms"]]
    assert result.main == result.main_arm == "lora_gen"
    old = recorded["arms"].get("specialized") or recorded["arms"]["lora_gen"]
    score = result.arms["lora_gen"].tasks["piqa"]
    assert score.metrics["acc"] == old["tasks"]["piqa"]["acc"]
    assert (score.n, score.cloud_tokens) == (100, old["tasks"]["piqa"]["cloud_tokens"])
    expected = renamed(recorded) | {"main": "lora_gen"}
    del expected["provenance"]
    assert json.loads(json.dumps(result.to_json())) == expected
    assert EvalResult.from_json(result.to_json(), "again").to_json() == result.to_json()


def test_names_of_arms_are_todays_whatever_the_file_says():
    tool = {"official": {"iou": 0.5}, "official_stderr": {"iou": 0.1}, "strict": {}, "n": 3}
    gaps = {"no_adapter": {"average": {"gap": 0.1, "stderr": 0.2, "significant": False}}}
    arms = {"specialized": tool, "specialized_tools": tool, "no_adapter": tool}
    old = {"gpt4tools": {"sets": {"seen": {"arms": arms, "gaps": gaps, "source": "here"}}}}
    [(name, found)] = EvalResult.from_json(old, "here").gpt4tools.items()
    assert (name, found.source) == ("seen", "here")
    assert list(found.arms) == ["lora_gen", "lora_gen_tools", "bare"]
    assert found.arms["bare"].scores["official"] == {"iou": 0.5}
    assert found.gaps == {"bare": {"average": Gap(0.1, 0.2, False)}}
    # The oldest files hold a single set without a name.
    assert EvalResult.from_json({"gpt4tools": {"arms": arms}}, "").gpt4tools[""].arms == found.arms
    assert not set(OLD_ARMS) & set(OLD_ARMS.values())


def test_scores_hold_what_a_file_has_beyond_the_known():
    values = {"acc": 0.5, "acc_stderr": "N/A", "n": 4, "prompt_of": "piqa", "shots": 0}
    score = TaskScore.from_json(values)
    assert score.metrics == {"acc": 0.5}
    assert score.facts == {"acc_stderr": "N/A", "prompt_of": "piqa"}
    assert score.to_json() == values
    assert TaskScore.from_json({"n": "x", "edge_tokens": True}) == TaskScore()
    tool = ToolScore({"official": {"iou": 1.0}, "strict": {}}, {"official": {}, "strict": {}}, n=2)
    assert ToolScore.from_json(tool.to_json()) == tool


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"arms": 3}, "f.json is a damaged result of lorage eval: arms is not of the expected"),
        ({"arms": {"a": {"tasks": {"piqa": 1}}}}, "arms.a.tasks is not of the expected shape"),
        ({"arms": {}}, "it has neither arms nor gpt4tools"),
        ({"gpt4tools": {"sets": {"one": 3}}}, r"gpt4tools\.sets\.one is not"),
    ],
)
def test_a_damaged_file_is_named_with_the_field(values, says):
    with pytest.raises(DataError, match=says):
        EvalResult.from_json(values, "f.json")


def test_gaps_are_json(recorded):
    gap = EvalResult.from_json(recorded, "here").gaps["shuffled"]["piqa"]
    assert dataclasses.asdict(gap) == recorded["gaps"]["shuffled"]["piqa"]
