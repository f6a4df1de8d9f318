"""Typed results of `lorage eval`, to and from the JSON of its --json file.

The names of arms are those of `methods/` and `controls.py`. Files written under earlier names load
as if they had been written under today's: see OLD_ARMS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lorage_jax.errors import DataError
from lorage_jax.evaluate.paired import Gap
from lorage_jax.generator.card import Card, card_from_dict

Value = TypeVar("Value")
Gaps = dict[str, dict[str, Gap]]  # by arm, then by task or score

# Earlier names of arms in result files, and their names today.
OLD_ARMS = {
    "specialized": "lora_gen",
    "lorage": "lora_gen",
    "specialized_tools": "lora_gen_tools",
    "with_prompt": "in_context",
    "edge_with_prompt": "in_context",
    "cloud_with_prompt": "cloud_in_context",
    "without_prompt": "bare",
    "edge_without_prompt": "bare",
    "no_adapter": "bare",
    "multitask_lora": "lora",
    "control": "shuffled",
}
MODES: tuple[Literal["official"], Literal["strict"]] = ("official", "strict")  # of GPT4Tools


def current_arm(name: str) -> str:
    """Today's name of an arm."""
    return OLD_ARMS.get(name, name)


def by_arm(values: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under today's names of arms."""
    return {current_arm(name): value for name, value in values.items()}


@dataclass(frozen=True)
class TaskScore:
    """One arm on one task.

    Attributes:
        metrics: scores and their standard errors by lm-eval's names (`acc`, `acc_stderr`,
            `exact_match,strict-match`), each a share unless the metric says otherwise.
        n: number of records.
        shots: few-shot samples in the edge's context.
        edge_tokens: mean tokens that the edge reads per request.
        truncated: requests that were too long for the edge's context.
        seconds: wall time of the task.
        cloud_tokens: tokens that the cloud reads, once per task.
        cloud_shots: few-shot samples in the prompt that the cloud reads.
        prompts: number of prompts whose gates were averaged, in `mean_gates`.
        facts: anything else that the file holds.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    n: int | None = None
    shots: int | None = None
    edge_tokens: float | None = None
    truncated: int | None = None
    seconds: float | None = None
    cloud_tokens: float | None = None
    cloud_shots: int | None = None
    prompts: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskScore:
        """The inverse of `to_json`; a count that is not a number is unknown."""
        known = _numbers(values, _COUNTS)
        rest = {name: value for name, value in values.items() if name not in _COUNTS}
        metrics = {name: value for name, value in rest.items() if _is_number(value)}
        facts = {name: value for name, value in rest.items() if name not in metrics}
        return cls(metrics, facts=facts, **known)

    def to_json(self) -> dict[str, Any]:
        """Metrics, counts and facts side by side; what is unknown is left out."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        known = {name: value for name, value in counts.items() if value is not None}
        return {**self.metrics, **known, **self.facts}


_COUNTS = tuple(f.name for f in dataclasses.fields(TaskScore) if f.name not in ("metrics", "facts"))


@dataclass(frozen=True)
class ArmResult:
    """One arm on all tasks: what it does, in a sentence, and its scores by task.

    `summary` holds means over tasks: `mean`, `ave`, `har`, `seen`, `unseen` and standard errors.
    """

    what: str | None
    tasks: dict[str, TaskScore]
    summary: dict[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "what": self.what,
            "tasks": {name: score.to_json() for name, score in self.tasks.items()},
            "summary": self.summary,
        }


@dataclass(frozen=True)
class ToolScore:
    """One arm on one set of GPT4Tools records.

    `scores` and `stderrs` are by scorer (`official`, `strict`), then by score. Tokens are means per
    request: the edge's input, the whole instruction, the cloud's prompt; `compression` is the whole
    instruction over the edge's input.
    """

    scores: dict[str, dict[str, float | None]]
    stderrs: dict[str, dict[str, float | None]]
    n: int | None = None
    edge_tokens: float | None = None
    full_tokens: float | None = None
    compression: float | None = None
    cloud_tokens: float | None = None
    seconds: float | None = None
    truncated: int | None = None
    cloud_truncated: int | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ToolScore:
        """The inverse of `to_json`; what is not a number is unknown."""
        scores = {mode: _all_numbers(values.get(mode)) for mode in MODES}
        stderrs = {mode: _all_numbers(values.get(f"{mode}_stderr")) for mode in MODES}
        return cls(scores, stderrs, **_numbers(values, _TOOL_COUNTS))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        out: dict[str, Any] = {"n": self.n}
        for mode in MODES:
            out |= {mode: self.scores[mode], f"{mode}_stderr": self.stderrs[mode]}
        return out | {name: getattr(self, name) for name in _TOOL_COUNTS}


_TOOL_COUNTS = tuple(
    f.name for f in dataclasses.fields(ToolScore) if f.name not in ("scores", "stderrs")
)


@dataclass(frozen=True)
class ToolResult:
    """All arms on one set of GPT4Tools records; `source` says where these are from."""

    arms: dict[str, ToolScore]
    gaps: Gaps = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    source: str | None = None
    cloud_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "source": self.source,
            "arms": {name: score.to_json() for name, score in self.arms.items()},
            "gaps": gaps_to_json(self.gaps),
            "words": self.words,
            "cloud_seconds": self.cloud_seconds,
        }


@dataclass(frozen=True)
class EvalResult:
    """A whole result of `lorage eval`.

    `main` names the arm that the evaluation is about; `gaps` are main less each control and each
    other method, by task and on average (`ave`); `words` says in sentences whether the prompt made
    a difference; `cards` are the specialisations by task; `gpt4tools` is by set of records.
    """

    model: dict[str, Any] = field(default_factory=dict)
    main: str | None = None
    arms: dict[str, ArmResult] = field(default_factory=dict)
    gaps: Gaps = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    cards: dict[str, Card] = field(default_factory=dict)
    gpt4tools: dict[str, ToolResult] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def main_arm(self) -> str:
        """`main`; where only GPT4Tools was run, the arm that a generator or a model leads to."""
        if self.main is not None:
            return self.main
        return "lora_gen" if self.model.get("generator") else "model"

    def to_json(self) -> dict[str, Any]:
        """The values of a --json file; `results` repeats the tasks of the main arm."""
        arms = {name: arm.to_json() for name, arm in self.arms.items()}
        out: dict[str, Any] = {
            "kind": "eval",
            "model": self.model,
            "results": arms[self.main]["tasks"] if self.main in arms else {},
            "main": self.main,
            "arms": arms,
            "gaps": gaps_to_json(self.gaps),
            "words": self.words,
        }
        if self.cards:
            out["cards"] = {name: card.to_dict() for name, card in self.cards.items()}
        out |= {"config": self.config, "seeds": self.seeds, "data": self.data}
        if self.gpt4tools:
            sets = {name: one.to_json() for name, one in self.gpt4tools.items()}
            out["gpt4tools"] = {"sets": sets}
        return out

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> EvalResult:
        """The inverse of `to_json`, for files of any age.

        Raises DataError that names `where` and the field: one is not of the expected shape, or
        there are no arms at all; and WeightsError that names them for a card that is damaged. A
        figure that is not a number is unknown, and no error.
        """
        read = _Reader(where)
        cards = read.nested(values.get("cards"), 2, "cards")
        result = cls(
            model=read.nested(values.get("model"), 1, "model"),
            main=_main(values.get("main")),
            arms=by_arm(read.arms(values.get("arms"))),
            gaps=_gaps(read.nested(values.get("gaps"), 3, "gaps")),
            words=read.words(values.get("words")),
            cards={k: card_from_dict(v, f"{where}, cards.{k}") for k, v in cards.items()},
            gpt4tools=read.tool_sets(values.get("gpt4tools")),
            **{k: _dict(values.get(k)) for k in ("config", "seeds", "data")},
        )
        read.nested(values.get("results"), 2, "results")
        if not result.arms and not result.gpt4tools:
            raise read.fault("it has neither arms nor gpt4tools")
        return result


def gaps_to_json(gaps: Gaps) -> dict[str, Any]:
    """JSON values."""
    return {
        arm: {name: dataclasses.asdict(gap) for name, gap in found.items()}
        for arm, found in gaps.items()
    }


@dataclass(frozen=True)
class _Reader:
    """Reads parts of a file; a part of the wrong shape is a DataError with its name."""

    where: str

    def fault(self, what: str) -> DataError:
        return DataError(f"{self.where} is a damaged result of lorage eval: {what}.")

    def nested(self, value: Any, depth: int, name: str) -> dict[str, Any]:
        """A dict, of dicts, and so on, `depth` deep; empty for None."""
        if value is None:
            return {}
        if not _is_nested(value, depth):
            raise self.fault(f"{name} is not of the expected shape")
        return value

    def words(self, value: Any) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.fault("words is not a list of sentences")
        return value

    def arms(self, value: Any) -> dict[str, ArmResult]:
        arms = {}
        for name, arm in self.nested(value, 2, "arms").items():
            tasks = self.nested(arm.get("tasks"), 2, f"arms.{name}.tasks")
            what = arm.get("what")
            arms[name] = ArmResult(
                what if isinstance(what, str) else None,
                {task: TaskScore.from_json(score) for task, score in tasks.items()},
                _all_numbers(arm.get("summary")),
            )
        return arms

    def tool_sets(self, value: Any) -> dict[str, ToolResult]:
        """By set; an older file has a single set without a name."""
        tools = self.nested(value, 1, "gpt4tools")
        sets = tools.get("sets")
        if not isinstance(sets, dict) or not sets:
            return {"": self.tool_set(tools, "gpt4tools")} if tools else {}
        return {
            name: self.tool_set(self.nested(one, 1, f"gpt4tools.sets.{name}"), "gpt4tools")
            for name, one in sets.items()
        }

    def tool_set(self, values: dict[str, Any], name: str) -> ToolResult:
        arms = {}
        for arm, score in _dict(values.get("arms")).items():
            arms[arm] = ToolScore.from_json(self.nested(score, 1, f"{name}.arms.{arm}"))
        words, source = values.get("words"), values.get("source")
        return ToolResult(
            by_arm(arms),
            _gaps(_dict(values.get("gaps"))),
            [word for word in words if isinstance(word, str)] if isinstance(words, list) else [],
            source if isinstance(source, str) else None,
            _numbers(values, ("cloud_seconds",))["cloud_seconds"],
        )


def _is_nested(value: Any, depth: int) -> bool:
    if depth == 0:
        return True
    return isinstance(value, dict) and all(_is_nested(v, depth - 1) for v in value.values())


def _gaps(values: Mapping[str, Any]) -> Gaps:
    """Gaps whose shape was checked, or of a part where anything may stand."""
    return by_arm(
        {
            arm: {name: _gap(gap) for name, gap in found.items() if isinstance(gap, dict)}
            for arm, found in values.items()
            if isinstance(found, dict)
        }
    )


def _gap(values: Mapping[str, Any]) -> Gap:
    numbers = _numbers(values, ("gap", "stderr"))
    return Gap(numbers["gap"], numbers["stderr"], values.get("significant") is True)


def _main(value: Any) -> str | None:
    return current_arm(value) if isinstance(value, str) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: values.get(name) for name in names}
    return {name: value if _is_number(value) else None for name, value in found.items()}


def _all_numbers(value: Any) -> dict[str, float | None]:
    return {name: one if _is_number(one) else None for name, one in _dict(value).items()}
