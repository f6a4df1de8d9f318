"""The engine: units under their prompts, arms in order, gaps and verdicts."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.arms import (
    Answered,
    Arm,
    Unit,
    ask,
    mean_gap,
    paired_gaps,
    verdicts,
)
from lorage_jax.evaluate.controls import MeanGates, OtherPrompts, Ready
from lorage_jax.evaluate.paired import FEWEST, Gap
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.method import Conditioning, Method, Placement
from lorage_jax.models.model import Model
from lorage_jax.models.presets import plain_decoder


@dataclass(frozen=True)
class Shouted(Method):
    name: ClassVar[str] = "shouted"
    what: ClassVar[str] = "the prompt in capitals"

    def prepare(self, prompts):
        return [Conditioning(context=p.upper(), facts={"length": len(p)}) for p in prompts]

    def place(self, edge, rows):
        return Placement((edge, [row.context for row in rows]))


CONFIG = plain_decoder("llama", vocab_size=8, width=4, layers=1, heads=1, kv_heads=1, ffn_width=4)
EDGE, CLOUD = (Model(CONFIG, {}, None) for _ in range(2))  # never run
UNITS = [Unit("one", ["a", "bb"], [1, 2, 3], [0, 1, 0]), Unit("two", ["c"], [4], [0])]


def echo(arm, unit, placement, rows):
    pairs = zip(unit.questions, rows, strict=True)
    return Answered([(placement.model, q, row.context) for q, row in pairs], 1.0)


def test_every_question_is_asked_under_its_own_prompt():
    seen = []
    arms = [Arm("loud", Shouted(), "in capitals"), Arm("bare", Bare())]
    found = ask(arms, EDGE, UNITS, echo, lambda arm, unit, _: seen.append((arm.name, unit.name)))
    model = (EDGE, ["A", "BB", "A"])
    loud = found["loud"]["one"]
    assert loud.answered.answers == [(model, 1, "A"), (model, 2, "BB"), (model, 3, "A")]
    assert loud.facts == [{"length": 1}, {"length": 2}] and loud.seconds >= 0
    assert found["loud"]["two"].answered.answers == [((EDGE, ["C"]), 4, "C")]
    assert found["bare"]["two"].answered.answers == [(EDGE, 4, None)]
    assert seen == [(arm, unit) for arm in ("loud", "bare") for unit in ("one", "two")]
    assert [arm.meaning for arm in arms] == ["in capitals", Bare.what]


def test_controls_change_the_prompts_and_nothing_else():
    others = OtherPrompts(Shouted(), ["x", "y", "z"], [{"of": 1}, {"of": 2}, {"of": 3}])
    found = ask([Arm("others", others)], EDGE, UNITS, echo)["others"]
    assert [text for _, _, text in found["one"].answered.answers] == ["X", "Y", "X"]
    assert found["two"].facts == [{"length": 1, "of": 3}]
    with pytest.raises(ConfigError, match="there are 1 other prompts for 3"):
        ask([Arm("others", OtherPrompts(Shouted(), ["x"]))], EDGE, UNITS, echo)
    with pytest.raises(ConfigError, match="shouted makes no cards"):
        MeanGates(Shouted()).prepare(["a"])
    cloud = ask([Arm("cloud", Ready(CLOUD, shown=True))], EDGE, UNITS, echo)["cloud"]
    assert cloud["two"].answered.answers == [(CLOUD, 4, "c")]


def test_gaps_and_verdicts():
    right, wrong = [1.0] * FEWEST, [0.0] * FEWEST
    scores = {arm: {"t": v} for arm, v in (("main", right), ("bare", wrong), ("random", right))}
    gaps = paired_gaps(scores, "main")
    assert gaps == {"random": {"t": Gap(0.0, 0.0, False)}, "bare": {"t": Gap(1.0, 0.0, True)}}
    assert paired_gaps(scores, "absent") == {}
    what = {"random": "noise", "bare": "nothing"}
    assert verdicts(gaps, "t", what) == [
        "The prompt made no significant difference against random (noise): mean gap +0.000, "
        "standard error 0.000.",
        "The prompt helps: better than bare (nothing): mean gap +1.000, standard error 0.000.",
    ]
    harm = {"bare": {"t": Gap(-0.5, 0.1, True)}}
    [said] = verdicts(harm, "t", what, "Tools")
    assert said.startswith("Tools: the prompt did harm: worse than bare (nothing): mean gap -0.500")


def test_the_mean_of_gaps_is_of_independent_tasks():
    found = mean_gap([Gap(0.3, 0.3, True), Gap(0.1, 0.4, False)], 100)
    assert found == Gap(pytest.approx(0.2), pytest.approx(0.25), False)
    assert mean_gap([Gap(0.3, None, False)], 1).stderr is None
