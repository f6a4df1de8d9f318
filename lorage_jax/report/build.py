"""The report page: verdicts in words, the runs, tables and pictures, and their commands."""

from __future__ import annotations

from typing import Any

from lorage_jax.report.controls import controls, other_methods
from lorage_jax.report.figures import figures
from lorage_jax.report.gates import gates
from lorage_jax.report.inputs import Evaluation, Inputs, Result
from lorage_jax.report.latency import milliseconds, times, trade_off
from lorage_jax.report.macs import arithmetic
from lorage_jax.report.page import (
    DASH,
    Block,
    Bullets,
    Cell,
    Code,
    Page,
    Paragraph,
    Row,
    Section,
    Table,
    number,
    row,
)
from lorage_jax.report.scores import accuracy, subject
from lorage_jax.report.tokens import tokens
from lorage_jax.report.tool_use import tool_use


def build(inputs: Inputs) -> Page:
    """A page of all sections for which the inputs have data."""
    sections: list[Section | None] = [_words(inputs), _what_was_run(inputs)]
    if inputs.evaluations:
        prefills = milliseconds(inputs)
        sections += [
            accuracy(inputs, prefills),
            controls(inputs),
            other_methods(inputs),
            tokens(inputs),
            tool_use(inputs),
            trade_off(inputs, prefills),
        ]
    sections += [times(inputs), arithmetic(inputs), gates(inputs), figures(inputs), _again(inputs)]
    return Page("LoRA-Gen: report", tuple(section for section in sections if section))


def _words(inputs: Inputs) -> Section | None:
    """The evaluations' own sentences on the difference that the prompt makes."""
    blocks: list[Block] = []
    for one in inputs.evaluations:
        said = (*one.result.words, *(one.tools.words if one.tools else ()))
        if said:
            blocks += [Paragraph(f"{subject(one)}:"), Bullets(said, "words")]
    return Section("Does the prompt make a difference?", tuple(blocks)) if blocks else None


def _what_was_run(inputs: Inputs) -> Section:
    rows = []
    for result in inputs.results:
        origin, machine = result.part("provenance"), result.part("provenance", "machine")
        cells = (result.what, _text(origin.get("date")), _commit(result), _machine(machine))
        rows.append(row(result.name, *map(Cell, cells)))
    for source in dict.fromkeys(card.source for card in inputs.cards):
        if source not in {result.name for result in inputs.results}:
            rows.append(row(source, Cell("card"), *[Cell(DASH)] * 3))
    columns = ("file", "what", "date", "commit", "machine")
    blocks: list[Block] = [
        Table("The files of this report", columns, tuple(rows), text_columns=len(columns))
    ]
    models = [_model_row(one) for one in inputs.evaluations]
    if models:
        columns = ("", "edge", "cloud", "generator", "family", "parameters", "tokenizer", "dtype")
        table = Table("The models", columns, tuple(models), text_columns=len(columns))
        blocks.append(table)
    return Section("What was run", tuple(blocks))


def _model_row(evaluation: Evaluation) -> Row:
    model = evaluation.result.model
    count = number(model.get("parameters"))
    keys = ("edge", "cloud", "generator", "family", "parameters", "tokenizer", "dtype")
    shown = {key: _text(model.get(key)) for key in keys}
    if count is not None:
        shown["parameters"] = f"{count:,.0f}"
    return row(evaluation.name, *(Cell(shown[key]) for key in keys))


def _commit(result: Result) -> str:
    state = result.part("provenance", "git")
    commit = _text(state.get("commit"))
    return f"{commit[:12]}, with changes" if state.get("changed") is True else commit[:12]


def _machine(machine: dict[str, Any]) -> str:
    if not machine:
        return DASH
    cores = f"{_text(machine.get('cpu_cores'))} cores"
    if "cpu" in machine:  # results of earlier versions do not name it
        cores += f" of {_text(machine['cpu'])}"
    return f"{_text(machine.get('devices'))} x {_text(machine.get('device'))}, {cores}"


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) and str(value) else DASH


def _again(inputs: Inputs) -> Section:
    """The command that made each input."""
    blocks: list[Block] = [Paragraph("Every figure comes from one of these runs:")]
    for result in inputs.results:
        origin = result.part("provenance")
        command = origin.get("command")
        if not isinstance(command, str):
            blocks.append(Paragraph(f"{result.name}: the command was not recorded."))
            continue
        versions = ", ".join(
            f"{name} {version}" for name, version in result.part("provenance", "versions").items()
        )
        blocks += [Paragraph(f"{result.name} ({versions or 'versions not recorded'}):")]
        blocks += [Code(command)]
    for source in dict.fromkeys(card.source for card in inputs.cards):
        if source not in {result.name for result in inputs.results}:
            blocks.append(Paragraph(f"{source}: a card, which `lorage inspect` shows."))
    return Section("How to make each figure again", tuple(blocks))
