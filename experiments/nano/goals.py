"""The goals of the nano pair, checked against its table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CONTROLS = ("shuffled", "random", "mean_gates")
COMPRESSION = 10.0  # edge tokens of tool calling, with the prompt over without it
SPEED = 2.1  # times faster per request, as in the paper
COMPOSITION = 0.8  # share of the score with the prompt in context


def goals(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of {"goal", "where", "found", "wanted", "met"} for a table of `report.world.combine`."""
    rows = (*_scores(table["splits"]), *_controls(table["splits"]), *_costs(table))
    return [
        {"goal": goal, "where": where, "found": found, "wanted": wanted, "met": met}
        for goal, where, found, wanted, met in rows
    ]


Row = tuple[str, str, float, float, bool]


def _scores(splits: dict[str, Any]) -> Iterator[Row]:
    for where, share in (("paraphrase", 1.0), ("composition", COMPOSITION)):
        for name in (name for name in splits if name.endswith(where)):
            methods = splits[name]["methods"]
            found, wanted = methods["lora_gen"]["mean"], share * methods["in_context"]["mean"]
            goal = f"at least {share:.0%} of the edge with the prompt in context"
            yield goal, name, found, wanted, found >= wanted


def _controls(splits: dict[str, Any]) -> Iterator[Row]:
    """The controls' goals, one-sided: a wrong prompt may do worse than guessing."""
    for name, split in splits.items():
        for control in CONTROLS:
            one = split["methods"][control]
            most = split["blind_ceiling"] + 2 * one["stderr_prompts"]
            goal = f"{control}: no better than the blind ceiling and two standard errors"
            yield goal, name, one["mean"], most, one["mean"] <= most


def _costs(table: dict[str, Any]) -> Iterator[Row]:
    for name, split in table["splits"].items():
        if name.startswith("tools"):
            found = split["tokens"]["compression"]
            yield (
                "compression of what the edge reads",
                name,
                found,
                COMPRESSION,
                (found >= COMPRESSION),
            )
    for name, time in table["seconds_per_request"].items():
        for kind, how in (("batch", f"{time['rows']} at once"), ("single", "one at a time")):
            found = time[kind]["ratio"]
            yield f"times faster per request, {how}", name, found, SPEED, found >= SPEED


def goals_markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "",
        "## Goals",
        "",
        "| goal | where | found | wanted | met |",
        "|---|---|---:|---:|---|",
    ]
    lines += [
        f"| {one['goal']} | {one['where']} | {one['found']:.3f} | "
        f"{'at most' if 'no better' in one['goal'] else 'at least'} {one['wanted']:.3f} | "
        f"{'yes' if one['met'] else 'no'} |"
        for one in rows
    ]
    return "\n".join(lines) + "\n"
