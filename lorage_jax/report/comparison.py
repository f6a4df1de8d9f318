"""The table of `lorage compare`, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorage_jax.evaluate.arms import BARE, MAIN
from lorage_jax.report.page import DASH, Block, Cell, Page, Row, Section, Table, decimal, row
from lorage_jax.report.render import to_markdown as render

CONTROL_WORDS = {
    "bare": "the edge as it is, the bare question",
    "shuffled": "lora_gen under the prompt of another task",
    "random": "lora_gen under random text of the same length",
    "mean_gates": "lora_gen under the mean of all cards",
}


def to_markdown(result: Mapping[str, Any], title: str = "Methods") -> str:
    """Exact match with controls, costs if measured, and the properties of the paper's Table 1."""
    methods = result["methods"].values()
    blocks: list[Block] = [_scores(result)]
    if any("gap" in split for method in methods for split in method["splits"].values()):
        blocks.append(_gaps(result))
    if all("seconds_per_request" in method for method in methods):
        blocks.append(_costs(result))
    blocks.append(_properties(result))
    return render(Page(title, (Section("All methods on the same questions", tuple(blocks)),)))


def _scores(result: Mapping[str, Any]) -> Table:
    methods, controls = result["methods"], result["controls"]
    splits = list(next(iter(methods.values()))["splits"])
    rows: list[Row] = []
    for name, method in methods.items():
        cells = [_figure(method["splits"][split]) for split in splits]
        rows.append(row(name, *cells, kind="ours" if name == MAIN else "plain"))
    for name, control in controls.items():
        if name != BARE or name not in methods:
            cells = [_figure(control["splits"][split]) for split in splits]
            rows.append(row(f"control: {name}", *cells))
    notes = [
        "± is one standard error, over seeds where a method was trained with several, else over "
        "prompts. * differs significantly from lora_gen on the same prompts (two-sided 5 % level; "
        "Student's t over few seeds).",
        *(f"{name}: {CONTROL_WORDS[name]}." for name in controls),
        *_devices(methods),
    ]
    return Table("Exact match", ("method", *splits), tuple(rows), tuple(notes))


def _devices(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names the devices that methods were asked on, if there are several."""
    rows: dict[str, list[str]] = {}
    for name, method in methods.items():
        if where := ", ".join(method.get("devices", ())):
            rows.setdefault(where, []).append(name)
    if len(rows) < 2:
        return []
    return [f"Asked on {where}: {', '.join(names)}." for where, names in rows.items()]


def _gaps(result: Mapping[str, Any]) -> Table:
    methods = {**result["methods"], **{f"control: {n}": c for n, c in result["controls"].items()}}
    splits = list(next(iter(methods.values()))["splits"])
    rows = [
        row(name, *(_gap(method["splits"][split]) for split in splits))
        for name, method in methods.items()
        if any("gap" in split for split in method["splits"].values()) and name != f"control: {BARE}"
    ]
    note = (
        "Exact match less that of lora_gen on the same prompts. ± is one standard error: over "
        "prompts and, where a side was trained with several seeds, over these as well; of the same "
        "runs, seed by seed."
    )
    return Table("Gap to lora_gen", ("method", *splits), tuple(rows), (note,))


def _gap(split: Mapping[str, Any]) -> Cell:
    gap = split.get("gap")
    if gap is None or gap["gap"] is None:
        return Cell(DASH)
    mark = "*" if gap["significant"] else ""
    error = "" if gap["stderr"] is None else f"± {gap['stderr']:.3f}"
    return Cell(f"{gap['gap']:+.3f}{mark}", error)


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
            decimal(method["flops_per_request"] / 1e6),
            decimal((method["parameter_bytes"] + method["cache_bytes"]) / 2**20, ".2f"),
            decimal(method["seeds"], "d"),
            kind="ours" if name == MAIN else "plain",
        )
        for name, method in result["methods"].items()
    ]
    columns = (
        *("method", "trained values", "edge tokens per request", "ms per request"),
        *("MFLOPs per request", "MiB", "seeds"),
    )
    notes = (
        "edge tokens: everything in the edge's context, including soft prompts and cached tokens.",
        "ms: of one run, methods taking turns. MFLOPs: prefill and answer, by the compiler; what "
        "is cached is not computed again. MiB: the edge's weights and any unmerged experts, "
        "plus the keys and values of one request. Reading and placing a prompt is not included.",
    )
    return Table("Costs", columns, tuple(rows), notes)


def _properties(result: Mapping[str, Any]) -> Table:
    """The paper's Table 1, derived from what was measured."""
    rows = [
        row(
            name,
            _mark(method["edge_tokens"] < method["context_tokens"]),
            _mark(method["merged"]),
            _mark(method["unseen_tasks"]),
            _mark(method["bigger_model"]),
            Cell(method["what"]),
            kind="ours" if name == MAIN else "plain",
        )
        for name, method in result["methods"].items()
    ]
    columns = (
        *("method", "shorter context", "no extra parameters", "unseen tasks without training"),
        *("knowledge of a bigger model", "what it is"),
    )
    notes = (
        "The paper's Table 1, derived. shorter context: fewer tokens at the edge than with the "
        "prompt in its context. no extra parameters: answers need the edge's own weights alone, "
        "with something merged into them. unseen tasks without training: something is made of the "
        "prompt of a task that was not in training, without solved examples. knowledge of a "
        "bigger model: the cloud reads the prompt.",
    )
    return Table("Properties", columns, tuple(rows), notes)


def _mark(value: bool | None) -> Cell:
    return Cell(DASH if value is None else "yes" if value else "no")
