"""Accuracy: the paper's Table 2 with our rows, seen and unseen tasks apart, other tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorage_jax.report.inputs import Inputs, Result
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
    "specialized": "specialized (LoRA-Gen)",
    "model": "model as it is",
    "in_context": "prompt in the context",
    "few_shot": "lm-eval's few-shot samples in the context",
    "no_adapter": "no adapter, no prompt",
    "shuffled": "another task's prompt (control)",
    "random": "a random prompt (control)",
    "mean_gates": "mean gates (control)",
    "no_tools": "tool lines left out",
    "specialized_tools": "specialized, format rules kept",
}


def arm_name(arm: str) -> str:
    """What a table calls an arm of an evaluation."""
    return ARMS.get(arm, arm)


def main_arm(result: Result) -> str:
    """The arm that the evaluation is about; there is none named when only GPT4Tools was run."""
    main = result.values.get("main")
    if isinstance(main, str):
        return main
    return "specialized" if result.part("model").get("generator") else "model"


def subject(result: Result) -> str:
    """What was evaluated: generator and edge, or the model alone."""
    model = result.part("model")
    names = [model[key] for key in ("generator", "edge") if isinstance(model.get(key), str)]
    return f"{' on '.join(names) or 'unnamed model'} ({result.name})"


# Table 2


def accuracy(inputs: Inputs, milliseconds: dict[tuple[str, str], float]) -> Section:
    """Table 2 with our arms above the paper's rows. `milliseconds`: by (result's name, arm)."""
    columns = ("", *(f"{t.short} ({'seen' if t.seen else 'unseen'})" for t in TASKS))
    rows: list[Row] = []
    notes: list[str] = []
    for result in with_tasks(inputs):
        rows.append(group(f"Ours: {subject(result)}"))
        rows += [_accuracy_row(result, arm, milliseconds) for arm in result.part("arms")]
        main = result.part("arms", main_arm(result), "tasks")
        counts = [decimal(main.get(task.name, {}).get("n"), ".0f") for task in TASKS]
        rows.append(row("records (n)", *counts, *[Cell("")] * 3))
        notes += _meanings(result, notes)
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
            "AVE is the mean and HAR the harmonic mean of the eight tasks; without all eight there "
            "is none. Seen: the train split of the task is among the paper's training data.",
            "ms: the paper's on the authors' device, ours on the machine named above: compare "
            f"within a group only. {DASH}: not measured. Paper: {SOURCE}, Table 2.",
            *notes,
        ),
    )
    return Section("Accuracy (Table 2)", (table, *_averages(inputs), *_other_tasks(inputs)))


def _meanings(result: Result, known: list[str]) -> list[str]:
    """The evaluation's own sentence on each arm, unless it stands there already."""
    notes = []
    for arm in result.part("arms"):
        what = result.part("arms", arm).get("what")
        note = f"{arm_name(arm)}: {what}."
        if isinstance(what, str) and note not in known:
            notes.append(note)
    return notes


def with_tasks(inputs: Inputs) -> list[Result]:
    return [r for r in inputs.kind("eval") if any(a.get("tasks") for a in r.part("arms").values())]


def _accuracy_row(result: Result, arm: str, milliseconds: dict[tuple[str, str], float]) -> Row:
    tasks, summary = result.part("arms", arm, "tasks"), result.part("arms", arm, "summary")
    scores = [tasks.get(task.name, {}) for task in TASKS]
    return row(
        f"{arm_name(arm)}{shots(tasks)}",
        *(percent(score.get("acc"), score.get("acc_stderr")) for score in scores),
        percent(summary.get("ave"), summary.get("ave_stderr")),
        percent(summary.get("har")),
        decimal(milliseconds.get((result.name, arm))),
        kind="ours" if arm == main_arm(result) else "plain",
    )


def shots(tasks: dict[str, Any]) -> str:
    """ ", 5 shots": the few-shot samples that edge and cloud were given, if that is known."""
    given = [[values.get(key) for key in ("shots", "cloud_shots")] for values in tasks.values()]
    counts = {max(known) for pair in given if (known := [n for n in pair if isinstance(n, int)])}
    if not counts:
        return ""
    ends = dict.fromkeys((min(counts), max(counts)))
    return f", {' to '.join(map(str, ends))} shots"


def _averages(inputs: Inputs) -> list[Block]:
    """Means over seen and over unseen tasks: does it reach beyond what it was trained on?"""
    rows: list[Row] = []
    for result in with_tasks(inputs):
        rows.append(group(f"Ours: {subject(result)}"))
        for arm in result.part("arms"):
            summary = result.part("arms", arm, "summary")
            kind = "ours" if arm == main_arm(result) else "plain"
            cells = (percent(summary.get(key)) for key in ("seen", "unseen"))
            every = percent(summary.get("mean"), summary.get("mean_stderr"))
            rows.append(row(arm_name(arm), *cells, every, kind=kind))
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
    caption = "Seen and unseen tasks apart: mean accuracy in percent"
    columns = ("", "seen (5 tasks)", "unseen (3 tasks)", "all that were run")
    note = "All that were run: whichever these were, so no AVE unless they are the eight."
    return [Table(caption, columns, tuple(rows), (note,))]


# lm-eval's metrics that are shares; a filter's name may follow, as in `exact_match,strict-match`.
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em")


def _other_tasks(inputs: Inputs) -> list[Block]:
    """What Table 2 has no column for: other metrics, other tasks."""
    blocks: list[Block] = []
    for result in with_tasks(inputs):
        arms = list(result.part("arms"))
        rows = []
        for task in task_names(result):
            scores = [result.part("arms", arm, "tasks", task) for arm in arms]
            for metric in _metrics(scores):
                if metric == "acc" and task in SHORT:
                    continue  # stands in Table 2
                cells = [_metric_cell(score, metric) for score in scores]
                rows.append(row(f"{SHORT.get(task, task)}: {metric}", *cells))
        if rows:
            caption = f"Other metrics and tasks, ± standard error: {subject(result)}"
            note = f"In percent: {', '.join(SHARES)}."
            columns = ("", *map(arm_name, arms))
            blocks.append(Table(caption, columns, tuple(rows), (note,)))
    return blocks


def _metrics(scores: list[dict[str, Any]]) -> list[str]:
    """The known shares, and whatever else has a standard error beside it."""
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


def _metric_cell(score: dict[str, Any], metric: str) -> Cell:
    value, error = score.get(metric), number(score.get(_error_name(metric)))
    if metric.split(",")[0] in SHARES:
        return percent(value, error)
    return replace(decimal(value, ".3f"), note="" if error is None else f"± {error:.3f}")


def task_names(result: Result) -> list[str]:
    """All tasks of any arm, those of Table 2 first and in its order."""
    found = {task: None for arm in result.part("arms") for task in _arm_tasks(result, arm)}
    return [t for t in SHORT if t in found] + [t for t in found if t not in SHORT]


def _arm_tasks(result: Result, arm: str) -> dict[str, Any]:
    return result.part("arms", arm, "tasks")
