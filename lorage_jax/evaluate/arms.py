"""A generator scored on tasks, with its baselines and controls beside every score.

An arm is one way to ask the same records. Controls are the proof that the prompt matters: a score
that another task's prompt, random text or the mean gates reach as well is not owed to the prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lorage_jax.errors import DataError
from lorage_jax.evaluate.controls import read_prompts
from lorage_jax.evaluate.harness import LorageLM, run_tasks
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.evaluate.paired import harmonic_mean, is_significant, paired_gap
from lorage_jax.evaluate.protocol import SystemPrompt, described, edge_text, system_prompt
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.merge import merge
from lorage_jax.infer.score import place, place_beside
from lorage_jax.models.model import Model

SEEN = ("arc_challenge", "arc_easy", "openbookqa", "boolq", "social_iqa")
UNSEEN = ("hellaswag", "winogrande", "piqa")  # the paper trains on none of them
CONTROLS = ("shuffled", "random", "mean_gates", "no_adapter")
BASELINES = ("in_context", "few_shot")
WHAT = {
    "model": "the model as it is, lm-eval's own few-shot prompt in its context",
    "specialized": "the task's prompt merged into the edge's weights, the bare question asked",
    "in_context": "no adapter, the same system prompt in the edge's own context",
    "few_shot": "no adapter, lm-eval's own few-shot prompt in the edge's context",
    "shuffled": "specialised by another task's prompt",
    "random": "specialised by random text of equal length",
    "mean_gates": "specialised by the mean gates of many prompts",
    "no_adapter": "no adapter, the bare question",
}


@dataclass
class Run:
    """What every arm needs."""

    lm: LorageLM
    data: TaskData
    shots: dict[str, int]  # by task; "*": all others
    limit: int | None
    seed: int
    say: Callable[[str], None] = print
    samples: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # arm, task, records

    def shots_of(self, name: str) -> int:
        """Samples for this task: its own number, that for all, or what its definition says."""
        number = self.shots.get(name, self.shots.get("*"))
        return self.data.default_shots(name) if number is None else number

    def checked(self, name: str, shots: int, **text: Any) -> Any:
        """The task, when its data are there and its answers have room in the model's context."""
        task = self.data.load(name, shots, **text)
        if task.OUTPUT_TYPE == "generate_until":
            self.lm.room(task.config.generation_kwargs)
        return task

    def task(
        self,
        arm: str,
        name: str,
        model: Model,
        *,
        encoding: str,
        shots: int,
        text: dict[str, Any],
        facts: dict[str, Any],
    ) -> dict[str, Any]:
        """One arm on one task: metrics, tokens and time; samples and scores are kept.

        `shots` stand in the edge's context; `text` changes lm-eval's definition; `facts`
        are what else the result shall tell.
        """
        harness_task = self.data.load(name, shots, **text)
        self.lm.reset(model, encoding)
        began = time.time()
        metrics, samples = run_tasks(self.lm, {name: harness_task}, self.limit, self.seed)
        seconds = time.time() - began
        rows = [_sample(arm, name, harness_task, sample) for sample in samples[name]]
        self.samples += rows
        if arm != "model":
            self.scores.setdefault(arm, {})[name] = _record_scores(samples[name])
        counts = self.lm.counts
        result = {
            **metrics[name],
            "shots": harness_task.get_config("num_fewshot"),
            "edge_tokens": counts["edge_tokens"] / max(1, counts["requests"]),
            "truncated": counts["truncated"],
            "seconds": seconds,
            **facts,
        }
        self.say(_line(arm, name, result))
        return result


def evaluate_model(run: Run, model: Model, names: Sequence[str]) -> dict[str, Any]:
    """lm-eval's protocol on one model: few-shot samples in its own context."""
    for name in names:  # finds out what is missing, before long work
        run.checked(name, run.shots_of(name))
    tasks = {
        name: run.task(
            "model", name, model, encoding="harness", shots=run.shots_of(name), text={}, facts={}
        )
        for name in names
    }
    return {"main": "model", "arms": {"model": _arm("model", tasks)}, "gaps": {}, "words": []}


def evaluate_generator(
    run: Run,
    edge: Model,
    generator: Generator,
    names: Sequence[str],
    *,
    template: str,
    controls: bool,
    baseline: bool,
) -> dict[str, Any]:
    """The LoRA-Gen protocol with the arms asked for; `gaps` are the main arm less each control."""
    sources = {}
    for name in names:  # finds out what is missing, before long work
        described(name)
        sources[name] = run.checked(name, run.shots_of(name))
    prompts = {
        name: system_prompt(generator, name, source, run.shots_of(name), run.seed)
        for name, source in sources.items()
    }

    def prompt_of(other: str) -> SystemPrompt:
        shots = run.shots_of(other)
        try:
            return system_prompt(generator, other, run.data.load(other, shots), shots, run.seed)
        except DataError:  # its records are not there: the description alone
            return SystemPrompt(described(other).descriptions[0], 0)

    read = read_prompts(
        generator, prompts, prompt_of, seed=run.seed, controls=controls, journal=run.lm.journal
    )
    edge, pool = place(edge), place_beside(generator.pool, edge)
    arms: dict[str, dict[str, Any]] = {}
    for arm in ["specialized", *BASELINES * baseline, *CONTROLS * controls]:
        tasks = {}
        for name in names:
            asked = {"encoding": template, "shots": 0, "text": edge_text(name, template)}
            model, facts = edge, {}
            if arm == "in_context":
                asked["text"] = edge_text(name, template, prompts[name].text)
                facts = {"shots": prompts[name].shots}
            elif arm == "few_shot":
                asked = {"encoding": "harness", "shots": run.shots_of(name), "text": {}}
            if arm in read:
                run.lm.reset(edge)  # lets go of the weights merged before
                model, facts = merge(edge, pool, read[arm][name].card), read[arm][name].facts
            tasks[name] = run.task(arm, name, model, **asked, facts=facts)
        arms[arm] = _arm(arm, tasks)
    gaps = {arm: _gaps(run.scores, arm, names) for arm in CONTROLS if controls}
    return {
        "main": "specialized",
        "arms": arms,
        "gaps": gaps,
        "words": _words(gaps, arms, names),
        "cards": {
            name: _card(one.card, prompts[name]) for name, one in read["specialized"].items()
        },
    }


def _card(card: Card, prompt: SystemPrompt) -> dict[str, Any]:
    values = card.to_dict()
    values["about"] = values["about"] | {"prompt": prompt.text, "shots": prompt.shots}
    return values


def _arm(arm: str, tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"what": WHAT[arm], "tasks": tasks, "summary": summary(tasks)}


def summary(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means of `acc`. AVE and HAR (harmonic mean) are over the paper's eight, or None.

    A mean's standard error is that of independent tasks: sqrt(sum of squares) / number.
    """

    def mean(names: Sequence[str]) -> tuple[float | None, float | None]:
        if not names or any(name not in tasks for name in names):
            return None, None
        values = [tasks[name]["acc"] for name in names]
        return sum(values) / len(values), _mean_error([tasks[n].get("acc_stderr") for n in names])

    eight = (*SEEN, *UNSEEN)
    ave, ave_stderr = mean(eight)
    some, some_stderr = mean([name for name in tasks if "acc" in tasks[name]])
    return {
        "mean": some,
        "mean_stderr": some_stderr,
        "ave": ave,
        "ave_stderr": ave_stderr,
        "har": None if ave is None else harmonic_mean([tasks[name]["acc"] for name in eight]),
        "seen": mean(SEEN)[0],
        "unseen": mean(UNSEEN)[0],
    }


def _mean_error(errors: Sequence[Any]) -> float | None:
    if not errors or any(not isinstance(e, int | float) or math.isnan(e) for e in errors):
        return None
    return math.sqrt(sum(e * e for e in errors)) / len(errors)


def _gaps(
    scores: dict[str, dict[str, list[float]]], arm: str, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The main arm less a control: per task, paired by record, and the mean over the tasks."""
    gaps = {
        name: asdict(paired_gap(scores["specialized"][name], scores[arm][name])) for name in names
    }
    mean = sum(gap["gap"] for gap in gaps.values()) / len(gaps)
    error = _mean_error([gap["stderr"] for gap in gaps.values()])
    records = sum(len(scores[arm][name]) for name in names)
    significant = is_significant(mean, error, records)
    return {**gaps, "ave": {"gap": mean, "stderr": error, "significant": significant}}


def _words(
    gaps: dict[str, dict[str, Any]], arms: dict[str, dict[str, Any]], names: Sequence[str]
) -> list[str]:
    """What the controls say, in sentences."""
    words = []
    for arm, found in gaps.items():
        gap = found["ave"]
        error = "unknown" if gap["stderr"] is None else f"{gap['stderr']:.3f}"
        figures = f"mean gap {gap['gap']:+.3f}, standard error {error}"
        place = f"{arm} ({WHAT[arm]})"
        if not gap["significant"]:
            words.append(f"The prompt made no significant difference against {place}: {figures}.")
        elif gap["gap"] < 0:
            words.append(f"The prompt did harm: worse than {place}: {figures}.")
        else:
            words.append(f"The prompt helps: better than {place}: {figures}.")
        same = [name for name in names if not found[name]["significant"]]
        if gap["significant"] and same:
            words.append(f"No significant difference against {arm} on {', '.join(same)}.")
    cut = sum(task["truncated"] for arm in arms.values() for task in arm["tasks"].values())
    if cut:
        words.append(f"{cut} requests were longer than the edge's context and lost their start.")
    return words


def _sample(arm: str, name: str, task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """A record for --samples. A generated answer has one for each of the task's filters."""
    row = {"task": name, "arm": arm, "doc_id": sample["doc_id"]}
    answers = sample["filtered_resps"]
    if task.OUTPUT_TYPE != "multiple_choice":
        scores = {metric: sample[metric] for metric in sample["metrics"]}
        return {**row, "filter": sample["filter"], "answer": sample["resps"][0][0], **scores}
    count = len(task.doc_to_choice(sample["doc"]))
    values = [answer[0] for answer in answers[:count]]  # behind them: those without a context
    # Partial evaluation (WinoGrande): the choices are in the context, and so is the label.
    label = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    return {**row, "loglikelihoods": values, "label": label, "prediction": int(np.argmax(values))}


def _record_scores(samples: Sequence[dict[str, Any]]) -> list[float]:
    """The main metric of every record, by the first filter."""
    first = samples[0]
    metric = "acc" if "acc" in first["metrics"] else first["metrics"][0]
    rows = [sample for sample in samples if sample["filter"] == first["filter"]]
    return [float(row[metric]) for row in rows]


def _line(arm: str, name: str, result: dict[str, Any]) -> str:
    figures = [
        f"{key} {value:.4f}"
        for key, value in result.items()
        if isinstance(value, float) and key.startswith(("acc", "exact")) and "stderr" not in key
    ]
    where = f"{result['edge_tokens']:.0f} tokens at the edge"
    if "cloud_tokens" in result:
        where = f"{result['cloud_tokens']} tokens to the cloud once, {where}"
    cut = f", {result['truncated']} truncated" if result["truncated"] else ""
    figures = "  ".join(figures)
    return (
        f"{arm:12} {name:14} {figures}  (n {result['n']}, {where}{cut}, {result['seconds']:.1f} s)"
    )
