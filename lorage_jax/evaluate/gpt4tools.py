"""The scores of the GPT4Tools benchmark: did the model call the right tool with the right input?

`score` looks at one record: its gold output and the raw completion of a model. Five numbers in
0..1: thought (SR_t), action (SR_act), args (SR_args), success (SR) and iou. Both scorers read
texts with the same four patterns, and a record is a *tool record* when its gold text holds both
`Action:` and `Action Input:`.

**official**: the public evaluation's arithmetic (github.com/AILab-CVC/GPT4Tools, its facts, not
its code). Tool records, with gold thoughts cut to the number of gold actions and, of a prediction
with one thought more than actions, the last thought dropped:
    thought = mean of the position-wise equality of thoughts, over the longer list
    action  = the same of tool names
    args    = mean over calls, over the longer list; a call is the mean over its arguments (split
              at commas), 0 when their number differs or a file name (.png) is missing; a text
              argument counts its BLEU-1
    success = thought = 1 and action = 1 and args >= 0.5
    iou     = sum(p g) / max(sum(max(p, g)), 1) over the three vectors, where g is 1 on the gold
              length and 0 after it: calls after the gold ones cost nothing here
No-tool records: thought = 0 unless the first thought is `No` and an `AI: ` line exists; the other
three are 1 when thought = 1, else 0; iou = that of the thoughts alone. The answer is never scored.

**strict**: what a program that has to run the calls would want. A call is a tool name with the
arguments of its input (split at commas, white space normalised); text, file names, case and number
have to be equal. Calls are compared as multisets, so order does not matter. With n the larger
number of calls, gold or predicted:
    thought = position-wise equality over the longer list; a closing `No` after the calls is free
    action  = tool names in common / n
    args    = argument lists in common / n
    success = thought = 1 and the two multisets of calls are equal
    iou     = calls in common / calls in either
No-tool records: all five are 1 when every thought is `No`, an `AI: ` line exists and nothing is
called; else all five are 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lorage_jax.errors import DataError
from lorage_jax.evaluate.paired import mean_stderr

Mode = Literal["official", "strict"]
Scores = dict[str, float]

SCORES = ("thought", "action", "args", "success", "iou")
THOUGHT = re.compile(r"Thought: Do I need to use a tool\? (.*)")
ACTION = re.compile(r"Action: (.*)")
INPUT = re.compile(r"Action Input: (.*)")
ANSWER = re.compile(r"AI: (.*)")
CALL_PART = re.compile(r"(Action|Action Input): (.*)")


def score(gold: str, prediction: str, mode: Mode = "official") -> Scores:
    """{"thought", "action", "args", "success", "iou"} of one record, by this module's rules."""
    if mode not in ("official", "strict"):
        raise DataError(f"there is no scorer {mode!r}; expected official or strict.")
    if "Action:" in gold and "Action Input:" in gold:
        values = (_official_call if mode == "official" else _strict_call)(gold, prediction)
    else:
        values = (_official_answer if mode == "official" else _strict_answer)(gold, prediction)
    return dict(zip(SCORES, map(float, values), strict=True))


def average(scores: Scores) -> float:
    """The "average score" of one record: the mean of its five."""
    return math.fsum(scores[name] for name in SCORES) / len(SCORES)


def corpus_score(scores: Sequence[Scores]) -> dict[str, dict[str, float | None]]:
    """{"mean", "stderr"} over records, each {"thought", ..., "iou", "average"}.

    The standard error is sd / sqrt(n) with the sample sd; None for a single record.
    """
    columns = {name: [one[name] for one in scores] for name in SCORES}
    columns["average"] = [average(one) for one in scores]
    both = {name: mean_stderr(values) for name, values in columns.items()}
    return {
        "mean": {name: mean for name, (mean, _) in both.items()},
        "stderr": {name: stderr for name, (_, stderr) in both.items()},
    }


def _official_call(gold: str, prediction: str) -> tuple[float, ...]:
    actions, inputs = _found(ACTION, gold), _found(INPUT, gold)
    predicted = _found(ACTION, prediction)
    thoughts = _found(THOUGHT, prediction)
    if len(thoughts) == len(predicted) + 1:
        # The turn after the last call. (The public code drops it only if it reads `No`; our
        # definition of `official`, written down before this code, drops it in any case.)
        thoughts = thoughts[:-1]
    parts = (
        _equal(_found(THOUGHT, gold)[: len(actions)], thoughts),
        _equal(actions, predicted),
        _similar(inputs, _found(INPUT, prediction)),
    )
    thought, action, args = (_mean(vector) for vector, _ in parts)
    success = thought == 1 and action == 1 and args >= 0.5
    vectors = [np.concatenate(side) for side in zip(*parts, strict=True)]
    return thought, action, args, success, _iou(*vectors)


def _official_answer(gold: str, prediction: str) -> tuple[float, ...]:
    thoughts = _found(THOUGHT, prediction)
    vectors = _equal(_found(THOUGHT, gold), thoughts)
    answered = thoughts[:1] == ["No"] and ANSWER.search(prediction) is not None
    thought = _mean(vectors[0]) if answered else 0.0
    right = thought == 1
    return thought, right, right, right, _iou(*vectors)


def _strict_call(gold: str, prediction: str) -> tuple[float, ...]:
    wanted, made = _calls(gold), _calls(prediction)
    thoughts = _found(THOUGHT, prediction)
    if len(thoughts) == len(made) + 1 and thoughts[-1] == "No":
        thoughts = thoughts[:-1]
    vector, _ = _equal(_found(THOUGHT, gold)[: len(wanted)], thoughts)
    thought = _mean(vector)
    most = max(len(wanted), len(made), 1)  # a damaged gold may hold no whole call
    action, args = (
        _common([call[part] for call in wanted], [call[part] for call in made]) / most
        for part in (0, 1)
    )
    common = _common(wanted, made)
    success = thought == 1 and common == most
    return thought, action, args, success, common / max(len(wanted) + len(made) - common, 1)


def _strict_answer(gold: str, prediction: str) -> tuple[float, ...]:
    right = (
        set(_found(THOUGHT, prediction)) == {"No"}
        and ANSWER.search(prediction) is not None
        and not _calls(prediction)
    )
    return (right,) * len(SCORES)


def _found(pattern: re.Pattern[str], text: str) -> list[str]:
    return [match.strip() for match in pattern.findall(text)]


def _equal(gold: list[str], predicted: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Position-wise equality over the longer list, and the gold vector: 1 on its own slots."""
    hits = [float(a == b) for a, b in zip(gold, predicted, strict=False)]
    return _vectors(hits, len(gold), len(predicted))


def _similar(gold: list[str], predicted: list[str]) -> tuple[np.ndarray, np.ndarray]:
    hits = [_input_score(a, b) for a, b in zip(gold, predicted, strict=False)]
    return _vectors(hits, len(gold), len(predicted))


def _vectors(hits: list[float], gold: int, predicted: int) -> tuple[np.ndarray, np.ndarray]:
    vector, ones = np.zeros(max(gold, predicted)), np.zeros(max(gold, predicted))
    vector[: len(hits)], ones[:gold] = hits, 1.0
    return vector, ones


def _mean(vector: np.ndarray) -> float:
    return float(np.mean(vector)) if vector.size else 0.0


def _iou(vector: np.ndarray, gold: np.ndarray) -> float:
    return float(np.sum(vector * gold) / max(np.sum(np.maximum(vector, gold)), 1.0))


def _input_score(gold: str, predicted: str) -> float:
    wanted, made = gold.split(","), predicted.split(",")
    if len(wanted) != len(made):
        return 0.0
    pairs = list(zip(wanted, made, strict=True))
    if any(".png" in a and ".png" not in b for a, b in pairs):
        return 0.0
    return float(np.mean([1.0 if ".png" in a else bleu_1(a, b) for a, b in pairs]))


def bleu_1(reference: str, text: str) -> float:
    """Clipped unigram precision x brevity penalty exp(1 - |reference| / |text|), white-space words.

    The tiny constants are those of pycocoevalcap, which the benchmark uses. They matter: one right
    word of two is 0.5 - 5e-10, just below what `success` asks for (equal texts: 1 - 1e-9).
    """
    wanted, made = reference.split(), text.split()
    correct = _common(wanted, made)
    precision = (correct + 1e-15) / (len(made) + 1e-9)
    ratio = (len(made) + 1e-15) / (len(wanted) + 1e-9)
    return precision * math.exp(1 - 1 / ratio) if ratio < 1 else precision


def _common(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many entries two lists have in common, each counted as often as in both."""
    return (Counter(left) & Counter(right)).total()


def _calls(text: str) -> list[tuple[str, tuple[str, ...] | None]]:
    """(tool name, arguments) in order. An action without an input, or the other way round, is a
    call as well: one that equals no whole call."""
    calls: list[tuple[str, tuple[str, ...] | None]] = []
    open_ = False
    for part, value in CALL_PART.findall(text):
        if part == "Action":
            calls.append((_spaced(value), None))
            open_ = True
            continue
        arguments = tuple(map(_spaced, value.split(",")))
        if open_:
            calls[-1] = (calls[-1][0], arguments)
        else:
            calls.append(("", arguments))
        open_ = False
    return calls


def _spaced(text: str) -> str:
    return " ".join(text.split())
