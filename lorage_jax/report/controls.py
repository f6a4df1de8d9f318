"""The gaps between the specialised model and its controls, which show if the prompt matters."""

from __future__ import annotations

from collections.abc import Callable

from lorage_jax.evaluate.arms import CONTROLS
from lorage_jax.evaluate.paired import Gap
from lorage_jax.evaluate.results import Gaps
from lorage_jax.report.inputs import Inputs
from lorage_jax.report.page import (
    DASH,
    Block,
    Bullets,
    Cell,
    Paragraph,
    Section,
    Table,
    number,
    percent,
    row,
)
from lorage_jax.report.scores import SHORT, arm_title, subject, task_names

MARK = " *"
UNKNOWN = Gap(None, None, False)
NOTE = (
    f"Paired record by record;{MARK} marks what the evaluation calls significant: two-sided 5 % "
    "level for one comparison, not corrected for many."
)


def controls(inputs: Inputs) -> Section | None:
    """The margin by which the specialised model beats each control, paired record by record."""
    blocks = _blocks(inputs, "arm", lambda arm: arm in CONTROLS)
    if not blocks:
        return None
    why = (
        "A score alone does not show that the prompt matters: a generator that ignores it can "
        "score as well. Only the gaps to the controls can show that."
    )
    return Section("Controls", (Paragraph(why), *blocks))


def other_methods(inputs: Inputs) -> Section | None:
    """The margins to methods that were asked beside the specialised model."""
    blocks = _blocks(inputs, "method", lambda arm: arm not in CONTROLS)
    return Section("Other methods", tuple(blocks)) if blocks else None


def _blocks(inputs: Inputs, kind: str, chosen: Callable[[str], bool]) -> list[Block]:
    """A table and its verdicts for every evaluation with gaps to arms that are `chosen`.

    `kind` is the word for them in the caption.
    """
    blocks: list[Block] = []
    for one in inputs.evaluations:
        main = one.result.main_arm
        gaps = {arm: gap for arm, gap in one.result.gaps.items() if chosen(arm)}
        if not gaps:
            continue
        labels = SHORT | {"ave": mean_name(gaps)}
        rows = [
            row(labels.get(name, name), *(gap_cell(gap, name) for gap in gaps.values()))
            for name in (*task_names(one.result.arms), "ave")
        ]
        blocks.append(
            Table(
                f"{arm_title(main)} minus each other {kind}, in percentage points ± standard "
                f"error: {subject(one)}",
                ("", *map(arm_title, gaps)),
                tuple(rows),
                (NOTE,),
            )
        )
        blocks.append(Bullets(tuple(verdict(main, arm, gap) for arm, gap in gaps.items())))
    return blocks


def mean_name(gaps: Gaps) -> str:
    """The name of the mean gap: AVE only for the paper's eight tasks."""
    tasks = {name for gap in gaps.values() for name in gap if name != "ave"}
    return "AVE" if tasks == set(SHORT) else f"mean of {len(tasks)} task{'s' * (len(tasks) != 1)}"


def gap_cell(gaps: dict[str, Gap], name: str) -> Cell:
    """A cell with the gap on one task in percentage points, its standard error and the mark."""
    gap = gaps.get(name, UNKNOWN)
    return percent(gap.gap, gap.stderr, signed=True, mark=MARK if gap.significant else "")


def verdict(main: str, arm: str, gaps: dict[str, Gap]) -> str:
    """One sentence on the gaps between two arms."""
    names = f"{arm_title(main)} against {arm_title(arm)}"
    cell, whole = gap_cell(gaps, "ave"), gaps.get("ave", UNKNOWN)
    if cell.text == DASH:
        tasks = [gap for gap in gaps.values() if number(gap.gap) is not None]
        clear = [gap.gap for gap in tasks if gap.significant and gap.gap is not None]
        better, worse = sum(gap > 0 for gap in clear), sum(gap < 0 for gap in clear)
        return (
            f"{names}: significantly better on {better} and worse on {worse} of {len(tasks)} "
            "tasks (no mean was computed)."
        )
    figure = " ".join((cell.text, cell.note.removesuffix(MARK)))
    points = f"{names}: {figure} points ({mean_name({arm: gaps})}), "
    if whole.significant and whole.gap is not None:
        return points + ("significantly better." if whole.gap > 0 else "significantly worse.")
    return points + "not significant: this run shows no difference between the two."
