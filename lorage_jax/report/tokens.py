"""Tokens that the edge and the cloud read, with and without the prompt in the context."""

from __future__ import annotations

from lorage_jax.evaluate.results import TaskScore
from lorage_jax.report.inputs import Inputs
from lorage_jax.report.page import Block, Section, Table, decimal, row
from lorage_jax.report.scores import SHORT, subject, task_names, tasks_of, with_tasks


def tokens(inputs: Inputs) -> Section | None:
    """A table per evaluation of the tokens that the edge and the cloud read."""
    blocks: list[Block] = []
    for one in with_tasks(inputs):
        main = one.result.main_arm
        full, short = (tasks_of(one.result, arm) for arm in ("in_context", main))
        rows = []
        for task in task_names(one.result.arms):
            full_score, bare = full.get(task, TaskScore()), short.get(task, TaskScore())
            before, after = full_score.edge_tokens, bare.edge_tokens
            ratio = before / after if before is not None and after else None
            cells = (
                decimal(before),
                decimal(after),
                decimal(ratio, ".1f", "x"),
                decimal(bare.cloud_tokens, ".0f"),
                decimal(full_score.truncated, ".0f"),
                decimal(bare.truncated, ".0f"),
                decimal(bare.seconds),
            )
            rows.append(row(SHORT.get(task, task), *cells))
        columns = (
            "",
            "edge, prompt in context",
            f"edge, {main}",
            "compression",
            "cloud, once per task",
            "cut, in context",
            f"cut, {main}",
            "seconds",
        )
        tokenizer = one.result.model.get("tokenizer")
        caption = f"Tokens; the edge's are means per request. {subject(one)}"
        notes = (
            f"Tokenizer of the edge: {tokenizer or 'not recorded'}. Compression: the edge's tokens "
            "with the prompt in its context over those without it. Cut: requests too long for the "
            "context. Seconds: for the whole task.",
        )
        blocks.append(Table(caption, columns, tuple(rows), notes))
    return Section("Tokens to the cloud and to the edge", tuple(blocks)) if blocks else None
