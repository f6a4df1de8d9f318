"""The table of `lorage compare`, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorage_jax.report.page import DASH, Block, Cell, Page, Row, Section, Table, decimal, row
from lorage_jax.report.render import to_markdown as render
from lorage_jax.world.compare import BARE, OURS

CONTROL_WORDS = {
    "bare": "the edge as it is, the bare question",
    "shuffled": "lora_gen under the prompt of another task",
    "random": "lora_gen under random text of the same length",
    "mean_gates": "lora_gen under the mean of all cards",
}


def to_markdown(result: Mapping[str, Any], title: str = "Methods") -> str:
    """Exact match with controls, costs, and the four properties of the paper's Table 1."""
    blocks: tuple[Block, ...] = (_scores(result), _costs(result), _properties(result))
    return render(Page(title, (Section("All methods on the same questions", blocks),)))


def _scores(result: Mapping[str, Any]) -> Table:
    methods, controls = result["methods"], result["controls"]
    splits = list(next(iter(methods.values()))["splits"])
    rows: list[Row] = []
    for name, method in methods.items():
        cells = [_figure(method["splits"][split]) for split in splits]
        rows.append(row(name, *cells, kind="ours" if name == OURS else "plain"))
    for name, control in controls.items():
        if name != BARE or name not in methods:
            cells = [_figure(control["splits"][split]) for split in splits]
            rows.append(row(f"control: {name}", *cells))
    notes = [
        "± is one standard error, over seeds where a method was trained with several, else over "
        "prompts. * differs significantly from lora_gen on the same prompts.",
        *(f"{name}: {CONTROL_WORDS[name]}." for name in controls),
    ]
    return Table("Exact match", ("method", *splits), tuple(rows), tuple(notes))


def _figure(split: Mapping[str, Any]) -> Cell:
    mark = "*" if split.get("gap", {}).get("significant") else ""
    error = "" if split["stderr"] is None else f"± {split['stderr']:.3f}"
    return Cell(f"{split['exact_match']:.3f}{mark}", error)


def _costs(result: Mapping[str, Any]) -> Table:
    rows = [
        row(
            name,
            decimal(method["trained_parameters"], ",d"),
            decimal(method["edge_tokens"]),
            decimal(1e3 * method["seconds_per_request"], ".2f"),
            decimal(method["seeds"], "d"),
            kind="ours" if name == OURS else "plain",
        )
        for name, method in result["methods"].items()
    ]
    columns = ("method", "trained values", "edge tokens per request", "ms per request", "seeds")
    return Table("Costs", columns, tuple(rows), ("Times of one run, methods taking turns.",))


def _properties(result: Mapping[str, Any]) -> Table:
    """The paper's Table 1, derived from what was measured."""
    bare = result["methods"][BARE]["edge_tokens"]
    rows = []
    for name, method in result["methods"].items():
        absent = method["edge_tokens"] <= bare
        rows.append(
            row(
                name,
                _mark(absent),
                _mark(method["merged"]),
                _mark(method["bigger_model"]),
                Cell(method["what"]),
                kind="ours" if name == OURS else "plain",
            )
        )
    columns = ("method", "prompt absent", "merged", "knowledge of a bigger model", "what it is")
    notes = (
        "prompt absent: the edge reads no more tokens than for the bare question. merged: the "
        "answer needs the edge's own weights alone.",
    )
    return Table("Properties", columns, tuple(rows), notes)


def _mark(value: bool | None) -> Cell:
    return Cell(DASH if value is None else "yes" if value else "no")
