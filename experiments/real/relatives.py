"""What the specialised edge does under the prompts of unseen kinds of tasks: another task's work?

    python experiments/real/relatives.py                 # results/real/relatives.{json,md}

Hardware: two CPU cores. Wall time: about three minutes. The bundled generator reads a definition of
each task of an unseen kind. The edge is asked inputs that the task shares with a task of the
training (words to translate, to inflect, to choose from), and its answers are compared with both
tasks' answers. Tasks that share fewer than FEWEST inputs with any other are left out.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import generator as recipe
import tables

import lorage_jax as lg
from lorage_jax.data.written_tasks import Instance, WrittenTask, read_tasks, task_held_out
from lorage_jax.evaluate.written import exact_match
from lorage_jax.generator.generator import Generator
from lorage_jax.models.model import Model

FEWEST, ASKED = 15, 24


def main() -> None:
    """Asks all tasks and writes the table."""
    options = tables.options(__doc__ or "", "relatives", limit=ASKED)
    generator = lg.load_generator(options.generator, dtype=options.dtype)
    edge = generator.speaking(lg.load_model(Path(str(generator.edge_source)), options.dtype))
    tasks = read_tasks([recipe.DATA / "instructions.jsonl"])
    unseen = [task for task in tasks if task_held_out(task, recipe.HELD_OUT)]
    seen = [task for task in tasks if task not in unseen]
    rows = [row for task in unseen if (row := asked(task, seen, generator, edge, options.limit))]
    rows.sort(key=lambda row: -row["as_relative"])
    table = {"generator": generator.fingerprint, "limit": options.limit, "tasks": rows}
    tables.write(options.json, table, markdown(rows))


def asked(
    task: WrittenTask, seen: list[WrittenTask], generator: Generator, edge: Model, limit: int
) -> dict[str, Any] | None:
    """The shares of answers that are right, and right for another task; None without inputs."""
    own = {one.key: one for one in task.instances}
    known = {other.name: {one.key: one for one in other.instances} for other in seen}
    shared = {name: sorted(own.keys() & theirs.keys()) for name, theirs in known.items()}
    shared = {name: keys for name, keys in shared.items() if len(keys) >= FEWEST}
    if not shared or not task.definitions:
        return None
    card = lg.specialize(generator, task.definitions[0])
    rng = Random(task.name)
    drawn = {name: rng.sample(keys, min(limit, len(keys))) for name, keys in shared.items()}
    keys = sorted(set().union(*drawn.values()))
    said = lg.chat(
        edge, [own[key].input for key in keys], gates=[card] * len(keys), max_new_tokens=16
    )
    answers = dict(zip(keys, said, strict=True))
    scores = {
        name: share({key: answers[key] for key in keys}, known[name])
        for name, keys in drawn.items()
    }
    relative = max(scores, key=lambda name: scores[name])
    both = drawn[relative]
    return {
        "task": task.name,
        "definition": task.definitions[0],
        "right": share({key: answers[key] for key in both}, own),
        "relative": relative,
        "as_relative": scores[relative],
        "asked": len(both),
        "example": {"input": own[both[0]].input, "answer": answers[both[0]]},
    }


def share(answers: dict[str, str], instances: dict[str, Instance]) -> float:
    """The share of answers, by the keys of their inputs, that a task accepts."""
    right = [
        any(exact_match(text, one) == 1 for one in instances[key].outputs)
        for key, text in answers.items()
    ]
    return sum(right) / max(len(right), 1)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for readers."""
    lines = [
        "# What the edge does under prompts of unseen kinds",
        "",
        "Exact match of greedy answers with the task's own answers, and with those of the task in "
        "training whose answers they are most often; the inputs are those that both tasks have.",
        "",
    ]
    cells = {
        f"{row['task']}: {row['definition'][:60]}": [
            f"{row['right']:.2f}",
            f"{row['as_relative']:.2f}",
            row["relative"],
            str(row["asked"]),
            f"{row['example']['input'][:40]} → {row['example']['answer'][:40]}",
        ]
        for row in rows
    }
    head = ["right", "as the relative", "relative in training", "questions", "an answer"]
    return "\n".join([*lines, *tables.grid(head, cells), ""])


if __name__ == "__main__":
    main()
