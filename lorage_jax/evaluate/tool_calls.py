"""GPT4Tools as a suite: every record has its own tools, so its own system prompt.

The edge answers many records per batch, each row under its own card, and stops at `Observation:`.
Arms (what the method reads | what the edge reads):

    in_context         nothing | the whole instruction
    no_tools           nothing | the instruction without the tool lines
    lora_gen_tools     the static part | the instruction without the tool lines
    lora_gen           the static part | conversation, request and trace
    (other methods)    the static part | as lora_gen, after the static part if the method shows it
and the controls of `lora_gen`, which say whether the prompt made the difference:
    shuffled           another record's static part, with other tools | as lora_gen
    random             random text of as many cloud tokens | as lora_gen
    mean_gates         (the mean of all cards of the run) | as lora_gen
    bare               nothing | as lora_gen
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from lorage_jax.data.gpt4tools import ToolRecord
from lorage_jax.data.templates import Message, question
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate.answers import (
    BATCH_TOKENS,
    Generation,
    encoded,
    mean_tokens,
    room_for_input,
)
from lorage_jax.evaluate.arms import (
    CONTROLS,
    MAIN,
    NO_OTHERS,
    Answered,
    Arm,
    Asked,
    Unit,
    ask,
    other_arms,
    paired_gaps,
    verdicts,
)
from lorage_jax.evaluate.controls import MeanGates, RandomText, Shuffled, random_prompts
from lorage_jax.evaluate.gpt4tools import average, corpus_score, score
from lorage_jax.evaluate.protocol import ENCODINGS, Encoding
from lorage_jax.evaluate.results import MODES, ToolResult, ToolScore
from lorage_jax.files.journal import Journal
from lorage_jax.generator.generator import Generator
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.in_context import InContext
from lorage_jax.methods.lora_gen import BATCH_ROWS, LoraGen, fit_cloud
from lorage_jax.methods.method import Conditioning, Method, Placement
from lorage_jax.models.model import Model

STOP = "Observation:"
ANSWER_TOKENS = 512  # of an answer: the benchmark's limit
# The part of an `Instruction` that the edge reads in each arm.
READS = {
    "in_context": "text",
    "no_tools": "without_tools",
    "lora_gen_tools": "without_tools",
    MAIN: "dynamic",
    "shuffled": "dynamic",
    "random": "dynamic",
    "mean_gates": "dynamic",
    "bare": "dynamic",
}
PLAIN = ("in_context", "no_tools")  # without a generator
UNIT = "gpt4tools"


@dataclass(frozen=True)
class ToolOutcome:
    """The result of all arms, and per record its id, gold output, predictions and scores."""

    result: ToolResult
    samples: list[dict[str, Any]]


def evaluate_tool_calls(
    records: Sequence[ToolRecord],
    edge: Model,
    generator: Generator | None,
    *,
    arms: Sequence[str] | None = None,
    template: Encoding = "trained",
    max_new_tokens: int = ANSWER_TOKENS,
    batch_rows: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    limit: int | None = None,
    seed: int = 0,
    journal: Journal | None = None,
    others: Mapping[str, Method] = NO_OTHERS,
) -> ToolOutcome:
    """Runs the arms (by default all that can be run) over the first `limit` records.

    `others` are further methods for this edge, by the names of their arms. Gaps are `lora_gen` less
    each control and each of `others`, record by record, official scores. With `template` "trained"
    the edge reads it in its turns, with "harness" the bare text. A batch has `batch_rows` records,
    or by default as many as fit into `batch_tokens`. Requests that `journal` holds are not run
    again. Raises ConfigError and DataError before the cloud reads anything.
    """
    records, names = list(records)[:limit], _checked(arms, generator)
    if not records:
        raise DataError("there are no records to evaluate; expected at least one.")
    if template not in ENCODINGS:
        raise ConfigError(f"template is {template!r}; expected {' or '.join(ENCODINGS)}.")
    encoded(edge, [record.instruction.text for record in records])  # can be read at all
    room_for_input(edge, max_new_tokens)
    edge = edge if generator is None else generator.speaking(edge)
    journal = journal if journal is not None else Journal()
    asking = _arms(names, records, generator, seed, batch_rows or BATCH_ROWS, journal)
    asking += other_arms(others)
    writing = Generation(max_new_tokens, (STOP,), batch_rows, batch_tokens, True, journal)
    way = _Answering(writing, template, frozenset(others))
    prompts = [record.instruction.static for record in records]
    unit = Unit(UNIT, prompts, records, range(len(records)))
    found = {arm: one[UNIT] for arm, one in ask(asking, edge, [unit], way).items()}
    full_tokens = mean_tokens(edge, [way.asked(record, "text") for record in records])
    samples = _samples(records, {arm: one.answered.answers for arm, one in found.items()})
    scored = {arm: [sample["scores"][arm] for sample in samples] for arm in found}
    official = {arm: _columns([one["official"] for one in by]) for arm, by in scored.items()}
    gaps = paired_gaps(official, MAIN, [*CONTROLS, *others])
    controlled = {arm: by for arm, by in gaps.items() if arm not in others}
    result = ToolResult(
        {arm: _score(scored[arm], one, full_tokens) for arm, one in found.items()},
        gaps,
        verdicts(controlled, "average", {arm.name: arm.meaning for arm in asking}, "GPT4Tools"),
        cloud_seconds=sum(one.prepare_seconds for one in found.values()),
    )
    return ToolOutcome(result, samples)


def _checked(arms: Sequence[str] | None, generator: Generator | None) -> tuple[str, ...]:
    able = tuple(READS) if generator is not None else PLAIN
    for arm in arms or ():
        if arm not in READS:
            raise ConfigError(f"there is no arm {arm!r}; expected some of {', '.join(READS)}.")
        if arm not in able:
            raise ConfigError(
                f"the arm {arm} needs a generator; without one there are {' and '.join(PLAIN)}."
            )
    return able if arms is None else tuple(dict.fromkeys(arms))


def _arms(
    names: Sequence[str],
    records: Sequence[ToolRecord],
    generator: Generator | None,
    seed: int,
    batch_rows: int,
    journal: Journal,
) -> list[Arm]:
    known = {
        "in_context": lambda: Arm("in_context", InContext(), "the whole instruction in context"),
        "no_tools": lambda: Arm("no_tools", Bare(), "the instruction without the tool lines"),
        "bare": lambda: Arm("bare", Bare(), "no adapter, the bare request"),
    }
    if generator is not None:
        method = LoraGen(generator, journal, batch_rows, cut=True)
        known |= _generator_arms(method, records, seed)
    return [known[name]() for name in names]


def _generator_arms(method: LoraGen, records: Sequence[ToolRecord], seed: int) -> dict[str, Any]:
    """Makers of the arms that need a generator: a control that nobody asked for may fail."""
    prompts = [record.instruction.static for record in records]

    def shuffled() -> Arm:
        others = [prompts[donor] for donor in other_tools(records, seed)]
        what = "specialised by another record's prompt, with other tools"
        return Arm("shuffled", Shuffled(method, others), what)

    def random() -> Arm:
        fitted = [fit_cloud(method.generator, prompt)[0] for prompt in prompts]
        texts = random_prompts(method.generator.reads, fitted, seed)
        return Arm("random", RandomText(method, texts))

    return {
        MAIN: lambda: Arm(MAIN, method),
        "lora_gen_tools": lambda: Arm("lora_gen_tools", method),
        "shuffled": shuffled,
        "random": random,
        "mean_gates": lambda: Arm("mean_gates", MeanGates(method)),
    }


def other_tools(records: Sequence[ToolRecord], seed: int) -> list[int]:
    """For each record the index of a random other one whose tools differ.

    Preferred is one that lacks the tools of the gold call: its prompt cannot help by chance.
    """
    rng, n = Random(f"shuffled/{seed}"), len(records)
    names = [set(record.instruction.tool_names) for record in records]
    donors = []
    for i, record in enumerate(records):
        order = [rng.randrange(n) for _ in range(min(n, 200))]
        differ = [j for j in order if names[j] != names[i]]
        differ = differ or [j for j in range(n) if names[j] != names[i]]
        if not differ:
            raise ConfigError(
                f"the arm shuffled needs records with other tools, but all {n} have those of "
                f"record {record.id}. Evaluate more records, or leave the arm out."
            )
        without = [j for j in differ if not names[j] & set(record.called)]
        donors.append((without or differ)[0])
    return donors


@dataclass(frozen=True)
class _Answering:
    """The way to answer: the part of the instruction that is the arm's, then generation.

    Arms of `others` read the part that LoRA-Gen's edge reads, after their conditioning's context.
    """

    generation: Generation
    template: Encoding
    others: frozenset[str]

    def asked(
        self, record: ToolRecord, part: str, context: str | None = None
    ) -> str | list[Message]:
        text = getattr(record.instruction, part)
        if self.template == "trained":
            return question(text, context)
        return text if context is None else f"{context}\n\n{text}"

    def __call__(
        self, arm: Arm, unit: Unit[ToolRecord], placement: Placement, rows: list[Conditioning]
    ) -> Answered[str]:
        if arm.name in self.others:
            pairs = zip(unit.questions, rows, strict=True)
            asked = [self.asked(record, READS[MAIN], row.context) for record, row in pairs]
        else:
            asked = [self.asked(record, READS[arm.name]) for record in unit.questions]
        return self.generation(arm.name, placement, asked)


def _samples(
    records: Sequence[ToolRecord], answers: dict[str, Sequence[str]]
) -> list[dict[str, Any]]:
    return [
        {
            "id": record.id,
            "gold": record.output,
            "predictions": {arm: texts[i] for arm, texts in answers.items()},
            "scores": {
                arm: {mode: score(record.output, texts[i], mode) for mode in MODES}
                for arm, texts in answers.items()
            },
        }
        for i, record in enumerate(records)
    ]


def _columns(scores: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {
        "success": [one["success"] for one in scores],
        "average": [average(one) for one in scores],
    }


def _score(scores: Sequence[dict[str, Any]], asked: Asked[str], full_tokens: float) -> ToolScore:
    """One arm. There is no number of cloud tokens without a card, nor for a mean of all cards."""
    corpus = {mode: corpus_score([one[mode] for one in scores]) for mode in MODES}
    cloud = [one["cloud_tokens"] for one in asked.facts if "cloud_tokens" in one]
    tokens = asked.answered.edge_tokens + asked.answered.front_slots
    return ToolScore(
        {mode: one["mean"] for mode, one in corpus.items()},
        {mode: one["stderr"] for mode, one in corpus.items()},
        n=len(scores),
        edge_tokens=tokens,
        full_tokens=full_tokens,
        compression=full_tokens / tokens,
        cloud_tokens=float(np.mean(cloud)) if cloud else None,
        seconds=asked.seconds,
        truncated=asked.answered.truncated,
        cloud_truncated=sum(bool(one.get("cloud_truncated")) for one in asked.facts),
    )
