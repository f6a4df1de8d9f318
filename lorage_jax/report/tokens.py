"""What the edge and the cloud have to read, with the prompt in the context and without."""

from __future__ import annotations

from lorage_jax.report.inputs import Inputs
from lorage_jax.report.page import Block, Section, Table, decimal, number, row
from lorage_jax.report.scores import SHORT, main_arm, subject, task_names, with_tasks


def tokens(inputs: Inputs) -> Section | None:
    """What the edge and the cloud have to read."""
    blocks: list[Block] = []
    for result in with_tasks(inputs):
        full, short = (
            result.part("arms", arm, "tasks") for arm in ("in_context", main_arm(result))
        )
        rows = []
        for task in task_names(result):
            before, after = (number(a.get(task, {}).get("edge_tokens")) for a in (full, short))
            ratio = before / after if before is not None and after else None
            cells = (
                decimal(before),
                decimal(after),
                decimal(ratio, ".1f", "x"),
                decimal(short.get(task, {}).get("cloud_tokens"), ".0f"),
                decimal(full.get(task, {}).get("truncated"), ".0f"),
                decimal(short.get(task, {}).get("truncated"), ".0f"),
                decimal(short.get(task, {}).get("seconds")),
            )
            rows.append(row(SHORT.get(task, task), *cells))
        columns = (
            "",
            "edge, prompt in context",
            f"edge, {main_arm(result)}",
            "compression",
            "cloud, once a task",
            "cut, in context",
            f"cut, {main_arm(result)}",
            "seconds",
        )
        tokenizer = result.part("model").get("tokenizer")
        caption = f"Tokens: the edge's are the mean of a request. {subject(result)}"
        notes = (
            f"Tokenizer of the edge: {tokenizer or 'not recorded'}. Compression: the edge's tokens "
            "with the prompt in its context over those without it. Cut: requests too long for the "
            "context. Seconds: of the whole task.",
        )
        blocks.append(Table(caption, columns, tuple(rows), notes))
    return Section("Tokens to the cloud and to the edge", tuple(blocks)) if blocks else None
