"""The paper's Table 3 (GPT4Tools) with our rows, by the official scorer and by the strict one."""

from __future__ import annotations

from lorage_jax.report.controls import NOTE, gap_cell
from lorage_jax.report.inputs import Inputs, Result
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
from lorage_jax.report.scores import arm_name, main_arm, subject


def tool_use(inputs: Inputs) -> Section | None:
    """Table 3 (GPT4Tools) by the official scorer, then the strict one, then the gaps."""
    results = [result for result in inputs.kind("eval") if result.part("gpt4tools")]
    if not results:
        return None
    columns = ("", *(shown for _, shown in TOOL_SCORES), "n", "compression")
    blocks: list[Block] = []
    for result in results:
        source = result.part("gpt4tools").get("source")
        shown = source if isinstance(source, str) else "not recorded"
        blocks.append(Paragraph(f"Records of {subject(result)}: {shown}."))
    for scorer in ("official", "strict"):
        rows: list[Row] = []
        for result in results:
            rows.append(group(f"Ours: {subject(result)}"))
            rows += [_tool_row(result, arm, scorer) for arm in result.part("gpt4tools", "arms")]
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
            "strict": "The same answers by the strict scorer: every argument must match, extra "
            "and missing calls count; the paper has no such figures",
        }
        notes = (
            (f"The paper's {TABLE_3_ITEMS} records are the benchmark's own ({SOURCE}, Table 3).",)
            if scorer == "official"
            else ()
        )
        blocks.append(Table(captions[scorer], columns, tuple(rows), notes))
    for result in results:
        blocks += _tool_gaps(result)
    blocks.append(_tool_tokens(results))
    return Section("Tool use (Table 3)", tuple(blocks))


def _tool_row(result: Result, arm: str, scorer: str) -> Row:
    figures = result.part("gpt4tools", "arms", arm)
    scores = result.part("gpt4tools", "arms", arm, scorer)
    errors = result.part("gpt4tools", "arms", arm, f"{scorer}_stderr")
    return row(
        arm_name(arm),
        *(percent(scores.get(key), errors.get(key)) for key, _ in TOOL_SCORES),
        decimal(figures.get("n"), ".0f"),
        decimal(figures.get("compression"), ".1f", "x"),
        kind="ours" if arm == main_arm(result) else "plain",
    )


def _tool_tokens(results: list[Result]) -> Table:
    rows: list[Row] = []
    for result in results:
        rows.append(group(f"Ours: {subject(result)}"))
        for arm in result.part("gpt4tools", "arms"):
            figures = result.part("gpt4tools", "arms", arm)
            cells = (
                *(decimal(figures.get(key)) for key in ("full_tokens", "edge_tokens")),
                decimal(figures.get("cloud_tokens")),
                decimal(figures.get("truncated"), ".0f"),
                decimal(figures.get("cloud_truncated"), ".0f"),
                decimal(figures.get("seconds")),
            )
            rows.append(row(arm_name(arm), *cells))
    columns = ("", "full input", "to the edge", "to the cloud", "cut", "cut, cloud", "seconds")
    note = "Cut: inputs too long for the context of the edge, or of the cloud."
    return Table("GPT4Tools: tokens, the mean of a request", columns, tuple(rows), (note,))


def _tool_gaps(result: Result) -> list[Block]:
    place = ("gpt4tools", "gaps")
    gaps = {
        arm: {name: result.part(*place, arm, name) for name in result.part(*place, arm)}
        for arm in result.part(*place)
    }
    shown = dict(TOOL_SCORES)
    names = list(dict.fromkeys(name for gap in gaps.values() for name in gap if "gap" in gap[name]))
    if not names:
        return []
    rows = [
        row(shown.get(name, name), *(gap_cell(gap, name) for gap in gaps.values()))
        for name in names
    ]
    main = arm_name(main_arm(result))
    caption = f"GPT4Tools, {main} minus each other arm, in points: {subject(result)}"
    return [Table(caption, ("", *map(arm_name, gaps)), tuple(rows), (NOTE,))]
