"""The paper's Table 3 (GPT4Tools) with our rows, by the official and by the strict scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lorage_jax.evaluate.results import MODES, ToolResult, ToolScore
from lorage_jax.report.controls import NOTE, gap_cell
from lorage_jax.report.inputs import Evaluation, Inputs
from lorage_jax.report.page import (
    Block,
    Cell,
    Paragraph,
    Row,
    Section,
    Table,
    decimal,
    group,
    percent,
    row,
)
from lorage_jax.report.paper import SOURCE, TABLE_3, TABLE_3_ITEMS, TABLE_3_MODEL, TOOL_SCORES
from lorage_jax.report.scores import arm_title, subject


def tool_use(inputs: Inputs) -> Section | None:
    """Table 3 (GPT4Tools) by the official scorer, then the strict one, then the gaps."""
    found = [(one, one.tools) for one in inputs.evaluations if one.tools is not None]
    if not found:
        return None
    blocks: list[Block] = [
        Paragraph(f"Records of {subject(one)}: {tools.source or 'not recorded'}.")
        for one, tools in found
    ]
    blocks += [_scores_table(found, scorer) for scorer in MODES]
    for one, tools in found:
        blocks += _gaps(one, tools)
    blocks.append(_tokens(found))
    return Section("Tool use (Table 3)", tuple(blocks))


Found = Sequence[tuple[Evaluation, ToolResult]]


def _scores_table(found: Found, scorer: str) -> Table:
    rows: list[Row] = []
    for one, tools in found:
        rows.append(group(f"Ours: {subject(one)}"))
        for arm, score in tools.arms.items():
            kind = "ours" if arm == one.result.main_arm else "plain"
            rows.append(_score_row(arm, score, scorer, kind))
    if scorer == "official":
        rows.append(group(f"The paper: {TABLE_3_MODEL}"))
        rows += [
            row(
                line.method,
                *(decimal(score) for score in line.scores),
                Cell(str(TABLE_3_ITEMS)),
                decimal(line.compression, ".1f", "x"),
            )
            for line in TABLE_3
        ]
    captions = {
        "official": "Table 3 of the paper with our rows: GPT4Tools, percent ± standard error",
        "strict": "The same answers by the strict scorer: every argument must match, and extra "
        "and missing calls count; the paper has no such figures",
    }
    note = f"The paper's {TABLE_3_ITEMS} records are the benchmark's own ({SOURCE}, Table 3)."
    columns = ("", *(shown for _, shown in TOOL_SCORES), "n", "compression")
    notes = (note,) if scorer == "official" else ()
    return Table(captions[scorer], columns, tuple(rows), notes)


def _score_row(arm: str, score: ToolScore, scorer: str, kind: Literal["ours", "plain"]) -> Row:
    scores, errors = score.scores[scorer], score.stderrs[scorer]
    return row(
        arm_title(arm),
        *(percent(scores.get(key), errors.get(key)) for key, _ in TOOL_SCORES),
        decimal(score.n, ".0f"),
        decimal(score.compression, ".1f", "x"),
        kind=kind,
    )


def _tokens(found: Found) -> Table:
    rows: list[Row] = []
    for one, tools in found:
        rows.append(group(f"Ours: {subject(one)}"))
        for arm, score in tools.arms.items():
            cells = (
                decimal(score.full_tokens),
                decimal(score.edge_tokens),
                decimal(score.cloud_tokens),
                decimal(score.truncated, ".0f"),
                decimal(score.cloud_truncated, ".0f"),
                decimal(score.seconds),
            )
            rows.append(row(arm_title(arm), *cells))
    columns = ("", "full input", "to the edge", "to the cloud", "cut", "cut, cloud", "seconds")
    note = "Cut: inputs too long for the context of the edge, or of the cloud."
    return Table("GPT4Tools: mean tokens per request", columns, tuple(rows), (note,))


def _gaps(one: Evaluation, tools: ToolResult) -> list[Block]:
    shown, gaps = dict(TOOL_SCORES), tools.gaps
    names = list(dict.fromkeys(name for gap in gaps.values() for name in gap))
    if not names:
        return []
    rows = [
        row(shown.get(name, name), *(gap_cell(gap, name) for gap in gaps.values()))
        for name in names
    ]
    main = arm_title(one.result.main_arm)
    caption = f"GPT4Tools, {main} minus each other arm, in points: {subject(one)}"
    return [Table(caption, ("", *map(arm_title, gaps)), tuple(rows), (NOTE,))]
