"""The paper's Table 13, with our counts of multiply-accumulates above the paper's."""

from __future__ import annotations

from typing import Any

from lorage_jax.report.inputs import Inputs, Result
from lorage_jax.report.page import (
    DASH,
    Cell,
    Row,
    Section,
    Table,
    decimal,
    group,
    number,
    row,
)
from lorage_jax.report.paper import SOURCE, TABLE_13, TABLE_13_SETTING


def arithmetic(inputs: Inputs) -> Section | None:
    """The section on arithmetic: counts of `lorage bench flops`, then the paper's Table 13."""
    results = inputs.bench("flops")
    if not results:
        return None
    rows: list[Row] = []
    notes = []
    for result in results:
        values = result.values
        rows.append(group(f"Ours: {_setting(result)}"))
        least = number(values.get("macs_specialized"))
        for key, label in OUR_COUNTS.items():
            kind = "ours" if key == "macs_specialized" else "plain"
            rows.append(_cost_row(label, number(values.get(key)), least, kind))
        requests = number(values.get("break_even_requests"))
        if requests is not None:
            notes.append(
                f"{result.name}: the cloud pass has paid for itself after {requests:,.0f} requests."
            )
    rows.append(group(f"The paper: {TABLE_13_SETTING}"))
    least = TABLE_13[-1].inference
    rows += [_cost_row(line.method, line.inference, least, "plain") for line in TABLE_13]
    notes.append(
        "The LoRA-Gen rows, ours and the paper's, leave out the cloud pass, which has its own row. "
        f"Paper: {SOURCE}, Table 13."
    )
    table = Table(
        "Table 13 of the paper with our counts: multiply-accumulates (which the paper calls FLOPs)",
        ("", "multiply-accumulates", "relative to LoRA-Gen"),
        tuple(rows),
        tuple(notes),
    )
    return Section("Arithmetic of a request (Table 13)", (table,))


OUR_COUNTS = {
    "macs_with_prompt": "instruction in the prompt (base, LoRA)",
    "macs_loramoe": "the same with LoRAMoE",
    "macs_mixlora": "the same with MixLoRA",
    "macs_specialized": "specialised (LoRA-Gen)",
    "macs_cloud_pass": "cloud pass, once per prompt",
    "macs_merge": "merge, once per prompt",
}


def _setting(result: Result) -> str:
    values = result.values
    shape = values.get("shape")
    parts = [shape if isinstance(shape, str) else "edge"]
    for key, unit in (
        ("layers", "layers"),
        ("input_tokens", "input tokens"),
        ("instruction_tokens", "instruction tokens"),
    ):
        if number(values.get(key)) is not None:
            parts.append(f"{values[key]} {unit}")
    return f"{', '.join(parts)} ({result.name})"


def _cost_row(label: str, macs: float | None, least: float | None, kind: Any) -> Row:
    if macs is None:
        return row(label, Cell(DASH), Cell(DASH), kind=kind)
    return row(label, Cell(f"{macs:.3e}"), decimal(macs / least if least else None, ".2f", "x"))
