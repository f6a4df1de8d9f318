"""The one engine of evaluations: the same questions, asked by every arm.

An arm is a method (or a control around one) under the name that results give it. A suite brings
units of questions under their system prompts and a way to answer them; the engine prepares the
prompts, places the edge, times the answers, and compares arms record by record. It knows neither
generators nor LoRA.

    arms = [Arm("lora_gen", method), Arm("shuffled", Shuffled(method, others)), Arm("bare", Bare())]
    asked = ask(arms, edge, [Unit("words", prompts, questions, owners)], answer)
    gaps = paired_gaps(scores, "lora_gen", ("shuffled", "bare"))

Controls are the proof that the prompt matters: a score that another prompt, random text or the
mean gates reach as well does not come from the prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from lorage_jax.evaluate.paired import Gap, is_significant, paired_gap
from lorage_jax.evaluate.results import Gaps
from lorage_jax.methods.method import Conditioning, Method, Placement
from lorage_jax.models.model import Model

Question = TypeVar("Question")
Answer = TypeVar("Answer")
MAIN, BARE = "lora_gen", "bare"  # the arm that is to be shown, and the edge without a prompt
NO_OTHERS: Mapping[str, Method] = MappingProxyType({})  # no methods beside those of a suite
CONTROLS = ("shuffled", "random", "mean_gates", BARE)
Scores = Mapping[str, Mapping[str, Sequence[float]]]  # by arm, then by task or score: the records


@dataclass(frozen=True)
class Arm:
    """A way to ask. `what` explains it in results, by default in the method's own words."""

    name: str
    method: Method
    what: str = ""

    @property
    def meaning(self) -> str:
        """One sentence for readers of a table."""
        return self.what or self.method.what


def other_arms(others: Mapping[str, Method]) -> list[Arm]:
    """Arms of further methods, by name, which say whether the edge reads the prompt as well."""
    shown = {True: ", the system prompt in its context", False: ""}
    return [
        Arm(name, one, f"{one.what}{shown[one.edge_sees_prompt and 'context' not in one.what]}")
        for name, one in others.items()
    ]


@dataclass(frozen=True)
class Unit(Generic[Question]):
    """Questions that are asked together.

    Attributes:
        name: the task, split or set of records.
        prompts: system prompts.
        questions: whatever the suite's way to answer understands.
        owners: index of each question's prompt; one for all means the first prompt.
    """

    name: str
    prompts: Sequence[str]
    questions: Sequence[Question]
    owners: Sequence[int]


@dataclass(frozen=True)
class Answered(Generic[Answer]):
    """Answers in the order of the questions, and what reading the questions took.

    Attributes:
        answers: one per question, of the suite's own kind.
        edge_tokens: mean tokens that the edge reads per request, before any cut.
        truncated: requests that were too long for the edge's context.
        front_slots: mean slots of a prefix in front of a request, which are not read again.
    """

    answers: Sequence[Answer]
    edge_tokens: float
    truncated: int = 0
    front_slots: float = 0.0


@dataclass(frozen=True)
class Asked(Generic[Answer]):
    """One arm on one unit: its answers, seconds, and facts about each prompt.

    `seconds` are those of answering; `prepare_seconds` those of preparing the arm's prompts, of
    all units together.
    """

    answered: Answered[Answer]
    seconds: float
    prepare_seconds: float
    facts: list[dict[str, Any]]


# (arm, unit, placement, one conditioning per question) -> answers
Way = Callable[[Arm, Unit[Question], Placement, list[Conditioning]], Answered[Answer]]
# Called with (arm, unit, outcome) after each unit.
Report = Callable[[Arm, Unit[Question], Asked[Answer]], None]


def ask(
    arms: Sequence[Arm],
    edge: Model,
    units: Sequence[Unit[Question]],
    answer: Way[Question, Answer],
    report: Report[Question, Answer] | None = None,
) -> dict[str, dict[str, Asked[Answer]]]:
    """Every arm's answers to every unit, by arm and unit.

    All prompts are prepared first, so that what cannot be prepared is known before long work.
    `seconds` are those of the answers alone, without preparing and placing.
    """
    prepared = [_prepare(arm, units) for arm in arms]
    found: dict[str, dict[str, Asked[Answer]]] = {arm.name: {} for arm in arms}
    for arm, (conditionings, prepare_seconds) in zip(arms, prepared, strict=True):
        for unit, ready in zip(units, conditionings, strict=True):
            rows = [ready[owner] for owner in unit.owners]
            placement = arm.method.place(edge, rows)
            began = time.monotonic()
            answered = answer(arm, unit, placement, rows)
            seconds = time.monotonic() - began
            outcome = Asked(answered, seconds, prepare_seconds, [one.facts for one in ready])
            del placement  # a merged edge must go before the next one is made
            found[arm.name][unit.name] = outcome
            if report is not None:
                report(arm, unit, outcome)
    return found


def _prepare(arm: Arm, units: Sequence[Unit[Any]]) -> tuple[list[list[Conditioning]], float]:
    """The conditionings of every unit, prepared together, and the seconds that it took."""
    began = time.monotonic()
    ready = iter(arm.method.prepare([prompt for unit in units for prompt in unit.prompts]))
    return [[next(ready) for _ in unit.prompts] for unit in units], time.monotonic() - began


def paired_gaps(scores: Scores, main: str, controls: Sequence[str] = CONTROLS) -> Gaps:
    """`main` less each control that was run, record by record, for everything that is scored."""
    if main not in scores:
        return {}
    return {
        control: {name: paired_gap(scores[main][name], scores[control][name]) for name in found}
        for control in controls
        if (found := scores.get(control)) is not None
    }


def mean_gap(gaps: Sequence[Gap], records: int) -> Gap:
    """The mean of independent gaps, over `records` records in all."""
    values = [gap.gap for gap in gaps if gap.gap is not None]
    mean, error = sum(values) / len(values), mean_error([gap.stderr for gap in gaps])
    return Gap(mean, error, is_significant(mean, error, records))


def mean_error(errors: Sequence[Any]) -> float | None:
    """Standard error of a mean of independent means; None if any error is unknown."""
    if not errors or any(not isinstance(e, int | float) or math.isnan(e) for e in errors):
        return None
    return math.sqrt(sum(e * e for e in errors)) / len(errors)


def verdicts(gaps: Gaps, key: str, what: Mapping[str, str], subject: str = "") -> list[str]:
    """A sentence for each control: did the prompt make a difference against it?

    `key` names the mean among an arm's gaps, `what` explains the arms; `subject`, if given, stands
    in front of each sentence.
    """
    start = f"{subject}: the" if subject else "The"
    words = []
    for arm, found in gaps.items():
        gap, place = found[key], f"{arm} ({what[arm]})"
        error = "unknown" if gap.stderr is None else f"{gap.stderr:.3f}"
        figures = f"mean gap {gap.gap:+.3f}, standard error {error}"
        if not gap.significant:
            verdict = f"made no significant difference against {place}"
        elif gap.gap is not None and gap.gap < 0:
            verdict = f"did harm: worse than {place}"
        else:
            verdict = f"helps: better than {place}"
        words.append(f"{start} prompt {verdict}: {figures}.")
    return words
