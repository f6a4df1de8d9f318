"""The built-in world as a suite: exact match by split, with the prompt, without it, with cards.

Arms (what the method reads | what the answering model reads):

    bare              nothing | the user text
    in_context        nothing | prompt and user text
    cloud_in_context  nothing | prompt and user text; the cloud itself answers
    lora              nothing | the user text; one LoRA for all tasks (`methods/lora.py`)
    lora_gen          the prompt | the user text; each row under its own prompt's gates
and the controls of `lora_gen`, which say whether the prompt made the difference:
    shuffled          a prompt of another task of the same split | as lora_gen
    random            random text of as many cloud tokens | as lora_gen
    mean_gates        (the mean of the split's cards) | as lora_gen

A result is {"words/paraphrase": SplitScores}; `report.world` combines results, each measured on
the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorage_jax.data.records import Record
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate.answers import BATCH_TOKENS, Generation, mean_tokens, turns
from lorage_jax.evaluate.arms import MAIN, Answered, Arm, Asked, Unit, ask
from lorage_jax.evaluate.controls import MeanGates, RandomText, Ready, Shuffled, random_prompts
from lorage_jax.evaluate.gpt4tools import SCORES, Mode, corpus_score, score
from lorage_jax.evaluate.paired import mean_stderr
from lorage_jax.evaluate.results import MODES, by_arm
from lorage_jax.files.journal import Journal
from lorage_jax.generator.generator import Generator
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.in_context import InContext
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import Conditioning, Method, Placement
from lorage_jax.models.model import Model
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world.samples import WorldSample, other_tasks

GENERATOR_ARMS = (MAIN, "shuffled", "random", "mean_gates")
BATCH_PROMPTS = 16
MARGIN = 4  # tokens an answer may be longer than the longest right one


@dataclass(frozen=True)
class ArmScore:
    """One arm on one split.

    Requests of one prompt stand or fall together: every mean is over prompts, each the mean of its
    records, and so is its standard error.

    Attributes:
        exact_match: share of answers that are right (`WorldSample.is_right`).
        stderr: its standard error over prompts; None for a single prompt.
        prompts, records: their numbers.
        by_prompt: exact match of each prompt.
        scores: of `tools` by scorer: {"mean", "stderr"} of the scores of GPT4Tools.
        cloud_tokens: mean tokens that the cloud reads, once per prompt; `lora_gen` only.
        texts: the answers by prompt, if they were kept.
    """

    exact_match: float
    stderr: float | None
    prompts: int
    records: int
    by_prompt: list[float]
    scores: dict[str, Any] | None = None
    cloud_tokens: float | None = None
    texts: list[list[str]] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, without those that are None but for `stderr`."""
        values = dict(vars(self))
        return {k: v for k, v in values.items() if v is not None or k == "stderr"}


@dataclass(frozen=True)
class SplitScores:
    """The arms on one split, with facts of its samples where a run measured them.

    `blind_ceiling` is the best exact match without the prompt; `tokens` are the mean tokens that
    the edge reads per request (`without_prompt`, `with_prompt`) and their ratio (`compression`).
    """

    arms: dict[str, ArmScore]
    blind_ceiling: float | None = None
    tokens: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; arms under the key `methods`."""
        out: dict[str, Any] = {"methods": {k: arm.to_json() for k, arm in self.arms.items()}}
        if self.tokens is not None:
            out |= {"blind_ceiling": self.blind_ceiling, "tokens": self.tokens}
        return out

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SplitScores:
        """The inverse of `to_json`, for results of any age."""
        arms = {name: ArmScore(**one) for name, one in values["methods"].items()}
        return cls(by_arm(arms), values.get("blind_ceiling"), values.get("tokens"))


WorldResult = dict[str, SplitScores]


def to_json(result: WorldResult) -> dict[str, Any]:
    """JSON values of a result, by split."""
    return {name: split.to_json() for name, split in result.items()}


def from_json(values: Mapping[str, Any]) -> WorldResult:
    """The inverse of `to_json`, for results of any age."""
    return {name: SplitScores.from_json(split) for name, split in values.items()}


@dataclass(frozen=True)
class Asking:
    """Settings of a run: tokens per batch, cache included; keep the answers?"""

    batch_tokens: int = BATCH_TOKENS
    keep_texts: bool = False


def base_arms(
    edge: Model, cloud: Model, samples: Sequence[WorldSample], asking: Asking | None = None
) -> WorldResult:
    """The arms without training, and facts of the samples."""
    arms = [
        Arm("bare", Bare()),
        Arm("in_context", InContext()),
        Arm("cloud_in_context", Ready(cloud, shown=True), "the cloud itself reads the prompt"),
    ]
    found = {}
    for sample in samples:
        scores = score_arms(arms, edge, sample, asking)
        without, whole = (tokens_read(edge, sample, shown) for shown in (False, True))
        found[sample.name] = SplitScores(
            scores,
            world_prompts.blind_ceiling(sample.split, sample.family),
            {"without_prompt": without, "with_prompt": whole, "compression": whole / without},
        )
    return found


def tokens_read(edge: Model, sample: WorldSample, shown: bool) -> float:
    """Mean tokens of a request, with the prompt in the edge's context if `shown`, else without."""
    contexts = [record.system if shown else None for record in sample.records]
    pairs = zip(sample.records, contexts, strict=True)
    return mean_tokens(edge, [turns(r.user, Conditioning(context=c)) for r, c in pairs])


def generator_arms(
    generator: Generator,
    edge: Model,
    samples: Sequence[WorldSample],
    *,
    seed: int,
    arms: Sequence[str] = GENERATOR_ARMS,
    asking: Asking | None = None,
) -> WorldResult:
    """`lora_gen` and its controls. The cloud reads every prompt once, for all arms and requests."""
    for arm in arms:
        if arm not in GENERATOR_ARMS:
            raise ConfigError(f"there is no arm {arm!r}; expected {', '.join(GENERATOR_ARMS)}.")
    found, edge = {}, generator.speaking(edge)
    for sample in samples:
        method = LoraGen(generator, batch_rows=BATCH_PROMPTS)
        makers = {MAIN: lambda method=method: method, **control_methods(method, sample, seed)}
        asked = [Arm(name, makers[name]()) for name in arms]
        found[sample.name] = SplitScores(score_arms(asked, edge, sample, asking))
    return found


def control_methods(
    method: LoraGen, sample: WorldSample, seed: int
) -> dict[str, Callable[[], Method]]:
    """Makers of the controls by name: one that nobody asks for may be impossible."""

    def random() -> RandomText:
        return RandomText(method, random_prompts(method.generator.reads, sample.prompts, seed))

    def shuffled() -> Shuffled:
        return Shuffled(method, [sample.prompts[donor] for donor in other_tasks(sample, seed)])

    return {"shuffled": shuffled, "random": random, "mean_gates": lambda: MeanGates(method)}


def lora_arm(
    model: Model, samples: Sequence[WorldSample], asking: Asking | None = None
) -> WorldResult:
    """`lora`: `model` is the edge with the LoRA merged (`methods.lora.load_lora`)."""
    arm = Arm("lora", Ready(model), "one LoRA for all tasks, trained without prompts")
    return {
        sample.name: SplitScores(score_arms([arm], model, sample, asking)) for sample in samples
    }


def score_arms(
    arms: Sequence[Arm], edge: Model, sample: WorldSample, asking: Asking | None = None
) -> dict[str, ArmScore]:
    """The scores of any arms on one sample: the engine with the world's way to answer."""
    asking = asking or Asking()
    unit = unit_of(sample)
    found = ask(arms, edge, [unit], Answering(asking.batch_tokens))
    return {arm: _arm_score(arm, sample, one[unit.name], asking) for arm, one in found.items()}


def unit_of(sample: WorldSample) -> Unit[Record]:
    """All questions of a sample."""
    owners = [i for i, group in enumerate(sample.groups) for _ in group]
    return Unit(sample.name, sample.prompts, sample.records, owners)


@dataclass(frozen=True)
class Answering:
    """The way to answer: the user text in the turns of training, then greedy generation."""

    batch_tokens: int = BATCH_TOKENS
    journal: Journal = field(default_factory=Journal)

    def __call__(
        self, arm: Arm, unit: Unit[Record], placement: Placement, rows: list[Conditioning]
    ) -> Answered[str]:
        template = placement.model.template
        longest = max(len(template.answer(record.target)) for record in unit.questions)
        texts = [turns(record.user, row) for record, row in zip(unit.questions, rows, strict=True)]
        way = Generation(longest + MARGIN, batch_tokens=self.batch_tokens, journal=self.journal)
        return way(f"{unit.name} {arm.name}", placement, texts)


def _arm_score(arm: str, sample: WorldSample, asked: Asked[str], asking: Asking) -> ArmScore:
    cloud_tokens = None
    if arm == MAIN:
        cloud_tokens = float(np.mean([facts["cloud_tokens"] for facts in asked.facts]))
    return measure(
        sample,
        asked.answered.answers,
        keep_texts=asking.keep_texts,
        cloud_tokens=cloud_tokens,
    )


def measure(
    sample: WorldSample,
    texts: Sequence[str],
    *,
    keep_texts: bool = False,
    cloud_tokens: float | None = None,
) -> ArmScore:
    """The score of these answers, one per record of the sample, in its order."""
    if len(texts) != len(sample.records):
        raise DataError(f"{len(texts)} answers came for {len(sample.records)} records.")
    right = [
        float(sample.is_right(record, text))
        for text, record in zip(texts, sample.records, strict=True)
    ]
    by_prompt = [float(np.mean(part)) for part in sample.by_group(right)]
    mean, stderr = mean_stderr(by_prompt)
    return ArmScore(
        mean,
        stderr,
        len(sample.groups),
        len(sample.records),
        by_prompt,
        _tool_scores(sample, texts) if sample.family == "tools" else None,
        cloud_tokens,
        sample.by_group(texts) if keep_texts else None,
    )


def _tool_scores(sample: WorldSample, texts: Sequence[str]) -> dict[str, Any]:
    pairs = list(zip(sample.records, texts, strict=True))

    def scores(mode: Mode) -> dict[str, Any]:
        found = [score(record.target, text, mode) for record, text in pairs]
        return corpus_score([_mean_scores(part) for part in sample.by_group(found)])

    return {mode: scores(mode) for mode in MODES}


def _mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in SCORES}
