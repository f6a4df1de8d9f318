"""Evaluates methods on lm-eval's tasks: the method reads the task's prompt, the edge the question.

Every task is one unit with one prompt. lm-eval builds the requests and scores the answers; the arm
determines the model that answers and the text of the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from lorage_jax.data.task_table import TASKS, paper_tasks
from lorage_jax.data.tasks import Task
from lorage_jax.errors import LorageError
from lorage_jax.evaluate.arms import (
    MAIN,
    NO_OTHERS,
    Answered,
    Arm,
    Asked,
    Unit,
    ask,
    mean_error,
    mean_gap,
    other_arms,
    paired_gaps,
    verdicts,
)
from lorage_jax.evaluate.controls import (
    MeanGates,
    RandomText,
    Shuffled,
    cloud_length,
    random_prompt,
)
from lorage_jax.evaluate.harness import LorageLM, run_tasks
from lorage_jax.evaluate.host_chat import AS_TEXT, NO_SYSTEM, HostChat
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.evaluate.paired import harmonic_mean
from lorage_jax.evaluate.protocol import (
    Encoding,
    SystemPrompt,
    edge_text,
    partner,
    system_prompt,
)
from lorage_jax.evaluate.results import ArmResult, EvalResult, TaskScore
from lorage_jax.generator.card import Card
from lorage_jax.infer.place import place
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.few_shot import FewShot
from lorage_jax.methods.in_context import InContext
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import Conditioning, Method, Placement
from lorage_jax.models.model import Model

SEEN = tuple(task.name for task in paper_tasks() if task.seen)
UNSEEN = tuple(task.name for task in paper_tasks() if not task.seen)
MODEL = "model"
FEWEST_TASKS = 4  # with fewer, mean gates are taken over the prompts of all described tasks
AS_IT_IS = "the model as it is, lm-eval's own few-shot prompt in its context"


@dataclass
class Run:
    """An evaluation: lm-eval's language model, the data, and the samples recorded so far."""

    lm: LorageLM
    data: TaskData
    shots: dict[str, int]  # number of samples by task; "*" for all others
    limit: int | None
    seed: int
    template: Encoding = "trained"
    chat: HostChat = AS_TEXT
    say: Callable[[str], None] = print
    samples: list[dict[str, Any]] = field(default_factory=list)

    def shots_of(self, name: str) -> int:
        """Number of samples for a task: its own, else that of "*", else its definition's."""
        number = self.shots.get(name, self.shots.get("*"))
        return self.data.default_shots(name) if number is None else number

    def checked(self, name: str) -> Any:
        """Loads a task. Raises DataError if its data are missing or its answers have no room."""
        task = self.data.load(name, self.shots_of(name))
        if task.OUTPUT_TYPE == "generate_until":
            self.lm.room(task.config.generation_kwargs)
        return task


@dataclass(frozen=True)
class TaskAnswers:
    """lm-eval's results on a task: metrics, number of few-shot samples, a score per record."""

    metrics: dict[str, Any]
    shots: int
    scores: list[float]


def evaluate_model(run: Run, model: Model, names: Sequence[str]) -> EvalResult:
    """Scores one model by lm-eval's own protocol, with few-shot samples in its context.

    Raises DataError if records are missing or malformed, and ConfigError for an unknown task or a
    chat without a chat template.
    """
    run.chat.check(run.lm.tokenizer)
    for name in names:  # fail here, before long work
        run.checked(name)
    units = [Unit(name, [""], [name], [0]) for name in names]
    arms = [Arm(MODEL, FewShot(), AS_IT_IS)]
    found = ask(arms, place(model), units, _Answering(run, {}), _Printing(run))
    words = [NO_SYSTEM] if run.lm.system_dropped else []
    words += run.data.words(names)
    return EvalResult(main=MODEL, arms=_results(arms, found, {}), words=words)


def evaluate_generator(
    run: Run,
    edge: Model,
    method: LoraGen,
    names: Sequence[str],
    *,
    controls: bool,
    baseline: bool,
    others: Mapping[str, Method] = NO_OTHERS,
) -> EvalResult:
    """Scores a generator by the LoRA-Gen protocol, with its baselines and controls.

    `others` are further methods for this edge, by the names of their arms. The result's `gaps` are
    the main arm's scores minus those of each control and of each of `others`.

    Raises DataError if records are missing or malformed, and ConfigError for a task without a
    description.
    """
    sources = {}
    for name in names:  # fail here, before long work
        run.data.described(name)
        sources[name] = run.checked(name)
    prompts = {
        name: system_prompt(
            method.generator, run.data.described(name), source, run.shots_of(name), run.seed
        )
        for name, source in sources.items()
    }
    arms = [Arm(MAIN, method)]
    arms += [Arm("in_context", InContext()), Arm("few_shot", FewShot())] * baseline
    arms += other_arms(others)
    controlling = _controls(run, method, prompts) if controls else []
    arms += controlling
    units = [Unit(name, [prompt.text], [name], [0]) for name, prompt in prompts.items()]
    shots = {name: prompt.shots for name, prompt in prompts.items()}
    edge = place(method.generator.speaking(edge))
    found = ask(arms, edge, units, _Answering(run, shots), _Printing(run))
    scores = {
        arm: {name: one.answered.answers[0].scores for name, one in units.items()}
        for arm, units in found.items()
    }
    gaps = paired_gaps(scores, MAIN, [*others, *(arm.name for arm in controlling)])
    records = sum(map(len, scores[MAIN].values()))
    gaps = {arm: {**by, "ave": mean_gap(list(by.values()), records)} for arm, by in gaps.items()}
    results = _results(arms, found, shots)
    words = _words({arm: by for arm, by in gaps.items() if arm not in others}, results)
    return EvalResult(
        main=MAIN,
        arms=results,
        gaps=gaps,
        words=words + run.data.words(names),
        cards=_cards(method, prompts),
    )


def _controls(run: Run, method: LoraGen, prompts: dict[str, SystemPrompt]) -> list[Arm]:
    """The control arms. If the run has few tasks, `mean_gates` are over all described tasks."""
    generator = method.generator

    def prompt_of(other: Task) -> SystemPrompt:
        alone = SystemPrompt(other.descriptions[0], 0)
        if all(name in run.data.written for name in prompts):  # no other records are at hand
            return alone
        shots = run.shots_of(other.name)
        try:
            source = run.data.load(other.name, shots)
        except LorageError:  # without records, the description alone
            return alone
        return system_prompt(generator, other, source, shots, run.seed)

    own = [run.data.described(name) for name in prompts]
    partners = [partner(task, own) for task in own]
    others = [prompts.get(task.name) or prompt_of(task) for task in partners]
    facts = [
        {"cloud_shots": other.shots, "prompt_of": task.name}
        for task, other in zip(partners, others, strict=True)
    ]
    rng, reads = Random(f"random/{run.seed}"), generator.reads
    noise = [
        random_prompt(reads, cloud_length(reads, prompt.text), rng) for prompt in prompts.values()
    ]
    over = None
    if len(prompts) < FEWEST_TASKS:
        over = [text for task in TASKS.values() for text in task.descriptions]
    return [
        Arm("shuffled", Shuffled(method, [other.text for other in others], facts)),
        Arm("random", RandomText(method, noise, [{"cloud_shots": 0}] * len(noise))),
        Arm("mean_gates", MeanGates(method, over)),
        Arm("bare", Bare()),
    ]


@dataclass(frozen=True)
class _Answering:
    """Answers a unit through lm-eval; `shots` counts the samples in each task's prompt."""

    run: Run
    shots: dict[str, int]

    def __call__(
        self, arm: Arm, unit: Unit[str], placement: Placement, rows: list[Conditioning]
    ) -> Answered[TaskAnswers]:
        run, name = self.run, unit.name
        encoding, shots, text = run.template, 0, {}
        if arm.method.few_shot:
            encoding, shots, text = "harness", run.shots_of(name), run.data.few_shot(name)
        else:
            turns = placement.model.template
            text = edge_text(run.data.described(name), run.template, turns, rows[0].context)
        task = run.data.load(name, shots, **text)
        front = placement.prefix_rows(1)
        experts = placement.pool if placement.cards is None else None
        run.lm.reset(placement.model, encoding, None if front is None else front[0], experts)
        chat = run.chat if arm.name == MODEL else AS_TEXT
        metrics, samples = run_tasks(run.lm, {name: task}, run.limit, run.seed, chat)
        run.samples += [_sample(arm.name, name, task, sample) for sample in samples[name]]
        counts = run.lm.counts
        scores = [] if arm.name == MODEL else _record_scores(samples[name])
        shots = task.get_config("num_fewshot")
        if rows[0].context is not None and not arm.method.few_shot:
            shots = self.shots[name]
        answers = TaskAnswers(metrics[name] | run.data.facts(name), shots, scores)
        tokens = counts["edge_tokens"] / max(1, counts["requests"])
        slots = 0 if front is None else front[0].slots
        return Answered([answers], tokens, counts["truncated"], slots)


def _score(asked: Asked[TaskAnswers], cloud_shots: int | None) -> TaskScore:
    answers, facts = asked.answered.answers[0], asked.facts[0]
    if "cloud_tokens" in facts:
        facts = {"cloud_tokens": facts["cloud_tokens"], "cloud_shots": cloud_shots} | facts
    return TaskScore.from_json(
        {
            **answers.metrics,
            "shots": answers.shots,
            "edge_tokens": asked.answered.edge_tokens + asked.answered.front_slots,
            "truncated": asked.answered.truncated,
            "seconds": asked.seconds,
            **facts,
        }
    )


def _results(
    arms: Sequence[Arm], found: dict[str, dict[str, Asked[TaskAnswers]]], shots: dict[str, int]
) -> dict[str, ArmResult]:
    results = {}
    for arm in arms:
        tasks = {name: _score(one, shots.get(name)) for name, one in found[arm.name].items()}
        results[arm.name] = ArmResult(arm.meaning, tasks, summary(tasks))
    return results


def summary(tasks: dict[str, TaskScore]) -> dict[str, float | None]:
    """Means over tasks: `mean` of `acc`, and `exact_match` and `f1` if any task has them.

    AVE and HAR (harmonic mean) of `acc` need the paper's eight, else None.

    Standard errors of means take tasks as independent: sqrt(sum of squares) / number of tasks.
    """

    def mean(names: Sequence[str], key: str = "acc") -> tuple[float | None, float | None]:
        if not names or any(name not in tasks for name in names):
            return None, None
        scores = [tasks[name].metrics for name in names]
        values, errors = ([one.get(k) for one in scores] for k in (key, f"{key}_stderr"))
        return sum(value or 0.0 for value in values) / len(values), mean_error(errors)

    def having(key: str) -> list[str]:
        return [name for name in tasks if key in tasks[name].metrics]

    eight = (*SEEN, *UNSEEN)
    ave, ave_stderr = mean(eight)
    some, some_stderr = mean(having("acc"))
    texts: dict[str, float | None] = {}
    for key in ("exact_match", "f1"):
        if names := having(key):
            texts[key], texts[f"{key}_stderr"] = mean(names, key)
    return {
        "mean": some,
        "mean_stderr": some_stderr,
        "ave": ave,
        "ave_stderr": ave_stderr,
        "har": None if ave is None else harmonic_mean([tasks[n].metrics["acc"] for n in eight]),
        "seen": mean(SEEN)[0],
        "unseen": mean(UNSEEN)[0],
        **texts,
    }


def _words(gaps: dict[str, Any], arms: dict[str, ArmResult]) -> list[str]:
    """The verdicts, the tasks that they do not hold for, and a warning if requests were cut."""
    words = []
    for arm, found in gaps.items():
        words += verdicts({arm: found}, "ave", {arm: arms[arm].what or arm})
        same = [name for name, gap in found.items() if name != "ave" and not gap.significant]
        if found["ave"].significant and same:
            words.append(f"No significant difference against {arm} on {', '.join(same)}.")
    cut = sum(task.truncated or 0 for arm in arms.values() for task in arm.tasks.values())
    if cut:
        words.append(f"{cut} requests were longer than the edge's context and lost their start.")
    return words


def _cards(method: LoraGen, prompts: dict[str, SystemPrompt]) -> dict[str, Card]:
    """The cards of the run, with their prompts, taken from the method's journal."""
    ready = method.prepare([prompt.text for prompt in prompts.values()])
    cards = {}
    for (name, prompt), one in zip(prompts.items(), ready, strict=True):
        if one.card is not None:
            about = one.card.about | {"prompt": prompt.text, "shots": prompt.shots}
            cards[name] = dataclasses.replace(one.card, about=about)
    return cards


def _sample(arm: str, name: str, task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """A row for --samples. Generated answers have one row per filter of the task."""
    row = {"task": name, "arm": arm, "doc_id": sample["doc_id"]}
    answers = sample["filtered_resps"]
    if task.OUTPUT_TYPE != "multiple_choice":
        scores = {metric: sample[metric] for metric in sample["metrics"]}
        return {**row, "filter": sample["filter"], "answer": sample["resps"][0][0], **scores}
    count = len(task.doc_to_choice(sample["doc"]))
    values = [answer[0] for answer in answers[:count]]  # those without a context come after
    # Partial evaluation (WinoGrande): the choices differ in the context, which holds the label.
    label = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    return {**row, "loglikelihoods": values, "label": label, "prediction": int(np.argmax(values))}


def _record_scores(samples: Sequence[dict[str, Any]]) -> list[float]:
    """The main metric of every record, by the first filter."""
    first = samples[0]
    metric = "acc" if "acc" in first["metrics"] else first["metrics"][0]
    rows = [sample for sample in samples if sample["filter"] == first["filter"]]
    return [float(row[metric]) for row in rows]


@dataclass(frozen=True)
class _Printing:
    """Prints a line as soon as an arm has finished a task."""

    run: Run

    def __call__(self, arm: Arm, unit: Unit[str], asked: Asked[TaskAnswers]) -> None:
        score = _score(asked, None)
        figures = "  ".join(
            f"{key} {value:.4f}"
            for key, value in score.metrics.items()
            if key.startswith(("acc", "exact", "f1")) and "stderr" not in key
        )
        where = f"{score.edge_tokens:.0f} tokens at the edge"
        if score.cloud_tokens is not None:
            where = f"{score.cloud_tokens} tokens to the cloud once, {where}"
        cut = f", {score.truncated} truncated" if score.truncated else ""
        counts = f"(n {score.n}, {where}{cut}, {score.seconds:.1f} s)"
        self.run.say(f"{arm.name:12} {unit.name:14} {figures}  {counts}")
