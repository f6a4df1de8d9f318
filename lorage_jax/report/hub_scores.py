"""Scores of `lorage eval` as the part of a model card, in Markdown, with their controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorage_jax.evaluate.results import ArmResult, EvalResult
from lorage_jax.report.scores import ARMS, arm_title

# In this order, the first that an arm has; means over tasks.
METRICS = {"exact_match": "exact match", "f1": "F1", "mean": "accuracy"}


def scores_part(result: EvalResult, provenance: Mapping[str, Any]) -> str:
    """A table of all arms, the sentences on the controls, and the machine that scored them.

    Args:
        result: an evaluation with tasks.
        provenance: that of its file; its command is left out, as it names places on a machine.
    """
    arms = {name: arm for name, arm in result.arms.items() if arm.tasks}
    metric = next(
        (m for m in METRICS if any(arm.summary.get(m) is not None for arm in arms.values())), "mean"
    )
    tasks = next(iter(arms.values())).tasks
    known = [score.n for score in tasks.values() if score.n is not None]
    records = f" of {min(known)} to {max(known)} records each" if known else ""
    lines = [
        f"Mean {METRICS[metric]} over {len(tasks)} tasks{records}, ± one standard error.",
        "",
        f"| | {METRICS[metric]} | edge tokens per request |",
        "|---|---:|---:|",
    ]
    for name in sorted(arms, key=_place):
        row = f"{arm_title(name)} | {_score(arms[name], metric)} | {_tokens(arms[name])}"
        lines.append(f"| {row} |")
    lines += ["", *(f"- {sentence}" for sentence in result.words)]
    lines += ["", f"Scored by `lorage eval`{_machine(provenance)}."]
    return "\n".join(lines)


def _place(arm: str) -> int:
    return list(ARMS).index(arm) if arm in ARMS else len(ARMS)


def _score(arm: ArmResult, metric: str) -> str:
    value, error = arm.summary.get(metric), arm.summary.get(f"{metric}_stderr")
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _tokens(arm: ArmResult) -> str:
    found = [one.edge_tokens for one in arm.tasks.values() if one.edge_tokens is not None]
    return f"{sum(found) / len(found):.0f}" if found else ""


def _machine(provenance: Mapping[str, Any]) -> str:
    machine = provenance.get("machine")
    device = machine.get("device") if isinstance(machine, dict) else None
    return f" on {device}" if isinstance(device, str) else ""
