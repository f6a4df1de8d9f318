"""Accuracy: the paper's Table 2 with our rows, means of seen and unseen tasks, other tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lorage_jax.evaluate.results import ArmResult, EvalResult, TaskScore
from lorage_jax.report.inputs import Evaluation, Inputs
from lorage_jax.report.page import (
    DASH,
    Block,
    Cell,
    Row,
    Section,
    Table,
    decimal,
    group,
    number,
    percent,
    row,
)
from lorage_jax.report.paper import (
    SOURCE,
    TABLE_2,
    TASKS,
)

SHORT = {task.name: task.short for task in TASKS}
ARMS = {
    "lora_gen": "specialised (LoRA-Gen)",
    "model": "model as it is",
    "in_context": "prompt in the context",
    "in_context_cached": "prompt in the context, its keys kept",
    "few_shot": "lm-eval's few-shot samples in the context",
    "bare": "no adapter, no prompt",
    "lora": "one LoRA for all tasks",
    "shuffled": "another task's prompt (control)",
    "random": "a random prompt (control)",
    "mean_gates": "mean gates (control)",
    "no_tools": "tool lines left out",
    "lora_gen_tools": "specialised, format rules kept",
}


def arm_title(arm: str) -> str:
    """The name of an evaluation's arm in tables."""
    return ARMS.get(arm, arm)


def subject(evaluation: Evaluation) -> str:
    """The generator and edge that were evaluated, or the model alone."""
    model = evaluation.result.model
    names = [model[key] for key in ("generator", "edge") if isinstance(model.get(key), str)]
    return f"{' on '.join(names) or 'unnamed model'} ({evaluation.name})"


# Table 2


def accuracy(inputs: Inputs, milliseconds: dict[tuple[str, str], float]) -> Section:
    """Table 2 with our arms above the paper's rows.

    `milliseconds` is keyed by (result's name, arm).
    """
    columns = ("", *(f"{t.short} ({'seen' if t.seen else 'unseen'})" for t in TASKS))
    rows: list[Row] = []
    notes: list[str] = []
    for one in with_tasks(inputs):
        rows.append(group(f"Ours: {subject(one)}"))
        for arm in one.result.arms:
            rows.append(_accuracy_row(one.result, arm, milliseconds.get((one.name, arm))))
        main = tasks_of(one.result, one.result.main_arm)
        counts = [decimal(main.get(task.name, TaskScore()).n, ".0f") for task in TASKS]
        rows.append(row("records (n)", *counts, *[Cell("")] * 3))
        notes += _meanings(one.result, notes)
    for model in dict.fromkeys(line.model for line in TABLE_2):
        rows.append(group(f"The paper: {model}"))
        rows += [
            row(
                line.method,
                *(decimal(score) for score in line.scores),
                *(decimal(v) for v in (line.average, line.harmonic, line.milliseconds)),
            )
            for line in TABLE_2
            if line.model == model
        ]
    table = Table(
        "Table 2 of the paper with our rows: accuracy (acc) in percent, ± standard error",
        (*columns, "AVE", "HAR", "ms"),
        tuple(rows),
        (
            "AVE is the mean and HAR the harmonic mean of the eight tasks; they need all eight. "
            "Seen: the train split of the task is among the paper's training data.",
            "ms: the paper's are from the authors' device, ours from the machine named above; "
            f"compare within a group only. {DASH}: not measured. Paper: {SOURCE}, Table 2.",
            *notes,
        ),
    )
    return Section("Accuracy (Table 2)", (table, *_averages(inputs), *_other_tasks(inputs)))


def _meanings(result: EvalResult, known: list[str]) -> list[str]:
    """The evaluation's own sentence on each arm, without those that are already `known`."""
    notes = [f"{arm_title(name)}: {arm.what}." for name, arm in result.arms.items() if arm.what]
    return [note for note in notes if note not in known]


def with_tasks(inputs: Inputs) -> list[Evaluation]:
    """The evaluations in which some arm was scored on tasks."""
    return [e for e in inputs.evaluations if any(arm.tasks for arm in e.result.arms.values())]


def tasks_of(result: EvalResult, arm: str) -> dict[str, TaskScore]:
    """An arm's scores by task; empty if the arm was not run."""
    return result.arms[arm].tasks if arm in result.arms else {}


def _accuracy_row(result: EvalResult, arm: str, milliseconds: float | None) -> Row:
    tasks, summary = result.arms[arm].tasks, result.arms[arm].summary
    scores = [tasks.get(task.name, TaskScore()).metrics for task in TASKS]
    return row(
        f"{arm_title(arm)}{shots(tasks)}",
        *(percent(score.get("acc"), score.get("acc_stderr")) for score in scores),
        percent(summary.get("ave"), summary.get("ave_stderr")),
        percent(summary.get("har")),
        decimal(milliseconds),
        kind=_kind(result, arm),
    )


def _kind(result: EvalResult, arm: str) -> Literal["ours", "plain"]:
    return "ours" if arm == result.main_arm else "plain"


def shots(tasks: dict[str, TaskScore]) -> str:
    """ ", 5 shots": the number of few-shot samples that edge or cloud got; empty if unknown."""
    given = [(score.shots, score.cloud_shots) for score in tasks.values()]
    counts = {max(known) for pair in given if (known := [n for n in pair if isinstance(n, int)])}
    if not counts:
        return ""
    ends = dict.fromkeys((min(counts), max(counts)))
    return f", {' to '.join(map(str, ends))} shots"


def _averages(inputs: Inputs) -> list[Block]:
    """Means over seen and over unseen tasks, which show if it generalises."""
    rows: list[Row] = []
    for one in with_tasks(inputs):
        rows.append(group(f"Ours: {subject(one)}"))
        for name, arm in one.result.arms.items():
            cells = (percent(arm.summary.get(key)) for key in ("seen", "unseen"))
            every = percent(arm.summary.get("mean"), arm.summary.get("mean_stderr"))
            rows.append(row(arm_title(name), *cells, every, kind=_kind(one.result, name)))
    if not rows:
        return []
    for model in dict.fromkeys(line.model for line in TABLE_2):
        rows.append(group(f"The paper: {model} (means computed from Table 2)"))
        for line in (line for line in TABLE_2 if line.model == model):
            cells = []
            for seen in (True, False):
                scores = [s for s, t in zip(line.scores, TASKS, strict=True) if t.seen == seen]
                cells.append(decimal(sum(scores) / len(scores)))
            rows.append(row(line.method, *cells, Cell("")))
    caption = "Seen and unseen tasks separately: mean accuracy in percent"
    columns = ("", "seen (5 tasks)", "unseen (3 tasks)", "all that were run")
    note = "All that were run: the mean of these tasks, which is AVE only for all eight."
    return [Table(caption, columns, tuple(rows), (note,))]


# Metrics of lm-eval that are shares. A filter's name may follow, e.g. `exact_match,strict-match`.
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em")


def _other_tasks(inputs: Inputs) -> list[Block]:
    """Metrics and tasks without a column in Table 2."""
    blocks: list[Block] = []
    for one in with_tasks(inputs):
        arms = one.result.arms
        rows = []
        for task in task_names(arms):
            scores = [arm.tasks.get(task, TaskScore()).metrics for arm in arms.values()]
            for metric in _metrics(scores):
                if metric == "acc" and task in SHORT:
                    continue  # is in Table 2
                cells = [_metric_cell(score, metric) for score in scores]
                rows.append(row(f"{SHORT.get(task, task)}: {metric}", *cells))
        if rows:
            caption = f"Other metrics and tasks, ± standard error: {subject(one)}"
            note = f"In percent: {', '.join(SHARES)}."
            columns = ("", *map(arm_title, arms))
            blocks.append(Table(caption, columns, tuple(rows), (note,)))
    return blocks


def _metrics(scores: list[dict[str, float]]) -> list[str]:
    """The known shares, and all other metrics with a standard error."""
    names = dict.fromkeys(name for score in scores for name in score)
    return [
        name
        for name in names
        if (name.split(",")[0] in SHARES or _error_name(name) in names)
        and any(number(score.get(name)) is not None for score in scores)
    ]


def _error_name(metric: str) -> str:
    name, comma, rule = metric.partition(",")
    return f"{name}_stderr{comma}{rule}"


def _metric_cell(score: dict[str, float], metric: str) -> Cell:
    value, error = score.get(metric), number(score.get(_error_name(metric)))
    if metric.split(",")[0] in SHARES:
        return percent(value, error)
    return replace(decimal(value, ".3f"), note="" if error is None else f"± {error:.3f}")


def task_names(arms: dict[str, ArmResult]) -> list[str]:
    """All tasks of any arm, those of Table 2 first and in its order."""
    found = {task: None for arm in arms.values() for task in arm.tasks}
    return [t for t in SHORT if t in found] + [t for t in found if t not in SHORT]
