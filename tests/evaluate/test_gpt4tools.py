"""The five scores: every golden row of the benchmark's page, corners, and properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorage_jax.errors import DataError
from lorage_jax.evaluate.gpt4tools import SCORES, average, bleu_1, corpus_score, score

YES, NO = "Thought: Do I need to use a tool? Yes", "Thought: Do I need to use a tool? No"
SEGMENT = "Segment the given object"


def call(action: str, given: str) -> str:
    return f"{YES}\nAction: {action}\nAction Input: {given}\nObservation:\n"


CALL = call(SEGMENT, "image/abcd.png, the red car")
ANSWER = f"{NO}\nAI: Paris\n"
COMMAS = call(SEGMENT, "image/abcd.png, a cat, a dog and a bird")

# gold, prediction, SR_t, SR_act, SR_args, SR, IoU, in the order of the page
GOLDEN = {
    "exact": (CALL, CALL, 1, 1, 1, 1, 1),
    "other file name": (CALL, call(SEGMENT, "cache/zz.png, the red car"), 1, 1, 1, 1, 1),
    "red car": (CALL, call(SEGMENT, "image/abcd.png, red car"), 1, 1, 0.803, 1, 0.934),
    "a dog": (CALL, call(SEGMENT, "image/abcd.png, a dog"), 1, 1, 0.5, 1, 0.833),
    "second argument missing": (CALL, call(SEGMENT, "image/abcd.png"), 1, 1, 0, 0, 0.667),
    "no .png": (CALL, call(SEGMENT, "image/abcd, the red car"), 1, 1, 0, 0, 0.667),
    "wrong tool": (
        CALL,
        call("Segment the Image", "image/abcd.png, the red car"),
        *(1, 0, 1, 0, 0.667),
    ),
    "wrong case": (CALL, call(SEGMENT.upper(), "image/abcd.png, the red car"), 1, 0, 1, 0, 0.667),
    "hallucinated second call": (CALL, CALL + call("Blur", "image/x.png"), 0.5, 0.5, 0.5, 0, 1),
    "trailing No turn": (CALL, CALL + ANSWER, 1, 1, 1, 1, 1),
    "No where a tool is due": (CALL, ANSWER, 0, 0, 0, 0, 0),
    "empty where a tool is due": (CALL, "", 0, 0, 0, 0, 0),
    "comma lost": (
        COMMAS,
        call(SEGMENT, "image/abcd.png, a cat a dog and a bird"),
        *(1, 1, 0, 0, 0.667),
    ),
    "no-tool: any answer": (ANSWER, f"{NO}\nAI: I like trains.", 1, 1, 1, 1, 1),
    "no-tool: No without AI": (ANSWER, NO, 0, 0, 0, 0, 1),
    "no-tool: a call": (ANSWER, CALL, 0, 0, 0, 0, 0),
    "no-tool: empty": (ANSWER, "", 0, 0, 0, 0, 0),
    "no-tool: two turns": (ANSWER, ANSWER + ANSWER, 0.5, 0, 0, 0, 1),
}


@pytest.mark.parametrize("row", GOLDEN)
def test_golden(row):
    gold, prediction, *expected = GOLDEN[row]
    assert list(score(gold, prediction).values()) == pytest.approx(expected, abs=5e-4)


# Scores of the same predictions by the page, and by a program that would run the calls.
STRICT = {
    "exact": (CALL, CALL, 1, 1, 1, 1, 1),
    "white space": (CALL, call(SEGMENT, "image/abcd.png,the  red car "), 1, 1, 1, 1, 1),
    "other file name": (CALL, call(SEGMENT, "cache/zz.png, the red car"), 1, 1, 0, 0, 0),
    "red car": (CALL, call(SEGMENT, "image/abcd.png, red car"), 1, 1, 0, 0, 0),
    "argument missing": (CALL, call(SEGMENT, "image/abcd.png"), 1, 1, 0, 0, 0),
    "wrong tool": (CALL, call("Blur", "image/abcd.png, the red car"), 1, 0, 1, 0, 0),
    "wrong case": (CALL, call(SEGMENT.upper(), "image/abcd.png, the red car"), 1, 0, 1, 0, 0),
    "extra call": (CALL, CALL + call("Blur", "image/x.png"), 0.5, 0.5, 0.5, 0, 0.5),
    "extra call without a thought": (
        CALL,
        CALL + "Action: Blur\nAction Input: x.png",
        *(1, 0.5, 0.5, 0, 0.5),
    ),
    "missing call": (CALL + call("Blur", "image/x.png"), CALL, 0.5, 0.5, 0.5, 0, 0.5),
    "the same call twice": (CALL, CALL + CALL, 0.5, 0.5, 0.5, 0, 0.5),
    "other order": (CALL + COMMAS, COMMAS + CALL, 1, 1, 1, 1, 1),
    "arguments exchanged": (
        call("A", "x.png") + call("B", "y.png"),
        call("A", "y.png") + call("B", "x.png"),
        *(1, 1, 1, 0, 0),
    ),
    "action without input": (CALL, f"{YES}\nAction: {SEGMENT}", 1, 1, 0, 0, 0),
    "input without action": (
        CALL,
        f"{YES}\nAction Input: image/abcd.png, the red car",
        *(1, 0, 1, 0, 0),
    ),
    "trailing No turn": (CALL, CALL + ANSWER, 1, 1, 1, 1, 1),
    "trailing Yes turn": (CALL, CALL + YES, 0.5, 1, 1, 0, 1),
    "No where a tool is due": (CALL, ANSWER, 0, 0, 0, 0, 0),
    "empty": (CALL, "", 0, 0, 0, 0, 0),
    "no-tool: any answer": (ANSWER, f"{NO}\nAI: Bonn", 1, 1, 1, 1, 1),
    "no-tool: two turns": (ANSWER, ANSWER + ANSWER, 1, 1, 1, 1, 1),
    "no-tool: No without AI": (ANSWER, NO, 0, 0, 0, 0, 0),
    "no-tool: a call": (ANSWER, CALL, 0, 0, 0, 0, 0),
    "no-tool: answer, then a call": (ANSWER, ANSWER + CALL, 0, 0, 0, 0, 0),
    "no-tool: a call without a thought": (
        ANSWER,
        ANSWER + "Action: Blur\nAction Input: x.png",
        *(0, 0, 0, 0, 0),
    ),
    "no-tool: empty": (ANSWER, "", 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("row", STRICT)
def test_strict(row):
    gold, prediction, *expected = STRICT[row]
    assert list(score(gold, prediction, "strict").values()) == pytest.approx(expected, abs=1e-9)


def test_thoughts_behind_the_gold_calls_are_cut():
    """The reference is a whole dialogue: one call, then the answer."""
    assert score(CALL + ANSWER, CALL)["thought"] == 1
    assert score(CALL + ANSWER, CALL, "strict")["success"] == 1


def test_a_turn_that_breaks_off_behind_its_thought():
    """The page drops a last thought without an action."""
    assert score(CALL, CALL + YES)["thought"] == 1
    assert score(CALL, YES)["thought"] == 0


def test_position_counts():
    swapped = score(CALL + COMMAS, COMMAS + CALL)
    assert swapped["thought"] == swapped["action"] == 1  # the same tool twice
    assert swapped["args"] == 0  # two arguments against three
    assert swapped["success"] == 0


def test_bleu_1_by_hand():
    assert bleu_1("the red car", "the red car") == pytest.approx(1, abs=1e-9)
    assert bleu_1("the red car", "red car") == pytest.approx(math.exp(-0.5), abs=1e-8)
    assert bleu_1("the red car", "the the the") == pytest.approx(1 / 3)  # clipped
    assert bleu_1("the car", "the red car now") == pytest.approx(0.5)  # longer is not punished
    assert [bleu_1("a", ""), bleu_1("", "a")] == pytest.approx([0, 0], abs=1e-12)


def test_half_a_text_argument_is_just_too_little():
    """BLEU-1 of one word of two is 0.5 - 5e-10 in pycocoevalcap, and success needs 0.5."""
    gold = call("Draw", "red car")
    assert score(gold, call("Draw", "red dog"))["success"] == 0
    assert score(gold, call("Draw", "red dog"))["args"] == pytest.approx(0.5)
    ratio = (2 + 1e-15) / (2 + 1e-9)
    assert score(gold, gold)["args"] == ratio * math.exp(1 - 1 / ratio) < 1


def test_a_damaged_gold_is_scored_not_refused():
    """One such record in a file must not stop the evaluation of the others."""
    for gold in ("", "Paris", "AI: Paris", f"{YES}\nAction: Blur\nAction Input:"):
        for mode in ("official", "strict"):
            for prediction in ("", gold, f"{YES}\nAction: Blur\nAction Input: a.png"):
                assert all(0 <= value <= 1 for value in score(gold, prediction, mode).values())


def test_an_unknown_mode_is_refused():
    with pytest.raises(DataError, match="official or strict"):
        score(CALL, CALL, "lenient")


def test_corpus_is_the_mean_of_records():
    scores = [score(CALL, CALL), score(CALL, ANSWER), score(ANSWER, ANSWER + ANSWER)]
    corpus = corpus_score(scores)
    mean, stderr = corpus["mean"], corpus["stderr"]
    assert mean["thought"] == pytest.approx(0.5)
    assert mean["success"] == pytest.approx(1 / 3)
    assert mean["iou"] == pytest.approx(2 / 3)
    assert mean["average"] == pytest.approx(np.mean([mean[name] for name in SCORES]))
    averages = [average(one) for one in scores]
    assert averages == pytest.approx([1, 0, 0.3])
    assert stderr["average"] == pytest.approx(np.std(averages, ddof=1) / math.sqrt(3))
    assert list(mean) == list(stderr) == [*SCORES, "average"]
    assert corpus_score(scores[:1])["stderr"]["thought"] is None


WORDS = st.lists(st.sampled_from("the red car a dog blue".split()), min_size=1, max_size=4)
ARGUMENTS = st.lists(
    st.one_of(st.just("image/abcd.png"), WORDS.map(" ".join)), min_size=1, max_size=3
)
ONE_CALL = st.builds(
    lambda name, arguments: call(name, ", ".join(arguments)),
    st.sampled_from(["Blur", "Draw Dogs", SEGMENT]),
    ARGUMENTS,
)
CALLS = st.lists(ONE_CALL, min_size=1, max_size=3).map("".join)
GOLD = st.one_of(CALLS, st.just(ANSWER))
LINES = st.lists(
    st.one_of(
        st.sampled_from([YES, NO, "AI: Paris", "Action: Blur", "Action Input: x.png, a", "?"]),
        CALLS,
        st.text(max_size=12),
    ),
    max_size=8,
).map("\n".join)


@given(GOLD)
def test_exact_is_all_ones(gold):
    for mode in ("official", "strict"):
        assert list(score(gold, gold, mode).values()) == pytest.approx([1] * 5, abs=1e-8)


@given(GOLD, LINES)
def test_scores_are_within_0_and_1(gold, prediction):
    official, strict = (score(gold, prediction, mode) for mode in ("official", "strict"))
    for values in (official, strict):
        assert list(values) == list(SCORES)
        assert all(isinstance(x, float) and 0 <= x <= 1 for x in values.values())
    assert strict["iou"] == 1 or strict["success"] == 0


@given(ONE_CALL, st.sampled_from(["", ANSWER, f"{NO}\n"]), st.booleans())
def test_strict_success_of_one_call_is_official_success(gold, tail, spaced):
    prediction = (gold.replace(", ", ",  ") if spaced else gold) + tail
    for mode in ("strict", "official"):
        assert score(gold, prediction, mode)["success"] == 1
