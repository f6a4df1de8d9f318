"""Prompts whose gates show the roles of experts: of the built-in world, or of files of tasks.

The generator's cloud reads them; `roles` says what their gates tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from lorage_jax.config import HeldOut
from lorage_jax.data.written_tasks import WrittenTask, is_held_out, read_tasks, task_held_out
from lorage_jax.errors import DataError
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.methods.lora_gen import LoraGen, fit_cloud
from lorage_jax.report.roles import Described, Sample, explain_gates, nearest_values
from lorage_jax.world import prompts as world_prompts

FAMILIES = ("words", "tools")
SPLITS = ("train", "paraphrase")  # half of the prompts each
BATCH_PROMPTS = 16
FEWEST = 8  # prompts of a family; with fewer it is left out
WORDINGS = 8  # of a task, at most
SEEN, UNSEEN = "kind", "unseen kind"

Candidate = tuple[Described, str]  # a prompt and its split


@dataclass(frozen=True)
class TaskPrompt:
    """A definition of a written task, with the kind of task that it is."""

    system: str
    parts: dict[str, tuple[str, ...]]


def explain_world(
    generator: Generator, *, prompts_per_family: int, seed: int, prompt: str | None = None
) -> dict[str, Any]:
    """Explains the experts by prompts drawn from the built-in world, half in unseen wordings.

    Args:
        generator: its cloud reads the prompts.
        prompts_per_family: prompts drawn from each family.
        seed: seed for the prompts and shuffles.
        prompt: the prompt to find neighbours of; by default one of those drawn.

    Prompts longer than the cloud's context are left out and counted. Raises DataError if `prompt`
    is too long, or too few of the others remain.
    """
    halves = (prompts_per_family // 2, prompts_per_family - prompts_per_family // 2)
    candidates: dict[str, list[Candidate]] = {
        family: [
            (one, split)
            for split, count in zip(SPLITS, halves, strict=True)
            for one in world_prompts.draw_prompts(split, count, seed, family)
        ]
        for family in FAMILIES
    }
    return _explain(generator, candidates, seed, prompt)


def explain_tasks(
    generator: Generator,
    path: str | Path,
    *,
    held: Sequence[HeldOut] = (),
    seed: int = 0,
    prompt: str | None = None,
) -> dict[str, Any]:
    """Explains the experts by the definitions in a file or folder of tasks.

    Args:
        generator: its cloud reads the definitions, up to `WORDINGS` of each task.
        path: rows {name, definition, group?, ...}, as `lorage eval` reads them.
        held: what the training held out. Tasks that it held out make a family of their own.
        seed: seed for the drawn definitions and for the shuffles.
        prompt: the prompt to find neighbours of; by default one of the definitions.

    Returns `explain_gates`, and in `nearest["kinds"]` for each unseen kind of task the kinds of
    training whose gates are most like its own.

    Raises DataError for a file that cannot be read, and as `explain_world` does.
    """
    tasks = [task for task in read_tasks([path]) if task.definitions]
    unseen = [task for task in tasks if held and all(task_held_out(task, one) for one in held)]
    seen = [task for task in tasks if task not in unseen]
    families = (("tasks", SEEN, seen), ("unseen tasks", UNSEEN, unseen))
    candidates = {
        family: [pair for task in own for pair in _definitions(task, kind, held, seed)]
        for family, kind, own in families
        if own
    }
    found = _explain(generator, candidates, seed, prompt)
    if {SEEN, UNSEEN} <= set(found["gates"]):
        found["nearest"]["kinds"] = nearest_values(found["gates"][UNSEEN], found["gates"][SEEN])
    return found


def _definitions(
    task: WrittenTask, kind: str, held: Sequence[HeldOut], seed: int
) -> list[Candidate]:
    """Some of a task's definitions, each with its split: was the wording in training?"""
    texts = list(dict.fromkeys(task.definitions))
    chosen = Random(f"{seed}/{task.name}").sample(texts, min(WORDINGS, len(texts)))
    parts = {kind: (task.group or task.name,)}

    def split(text: str) -> str:
        if not held:
            return "wording"
        new = all(is_held_out("definition", text, one.paraphrases, one.seed) for one in held)
        return "unseen wording" if new else "seen wording"

    return [(TaskPrompt(text, parts), split(text)) for text in chosen]


def _explain(
    generator: Generator,
    candidates: Mapping[str, Sequence[Candidate]],
    seed: int,
    prompt: str | None,
) -> dict[str, Any]:
    """`explain_gates` of the candidates, by family, whose prompts the cloud can read."""
    query = None if prompt is None else (prompt, specialize(generator, prompt).gates)
    method = LoraGen(generator, batch_rows=BATCH_PROMPTS)
    samples, left_out = [], {}
    for family, pairs in candidates.items():
        kept = [(one, split) for one, split in pairs if not fit_cloud(generator, one.system)[1]]
        left_out[family] = len(pairs) - len(kept)
        if len(kept) < FEWEST:
            continue
        rows = method.prepare([one.system for one, _ in kept])
        cards = [row.card for row in rows if row.card is not None]
        gates = np.asarray([card.gates for card in cards], np.float64)
        prompts, splits = zip(*kept, strict=True)
        samples.append(Sample(family, prompts, splits, gates))
    if not samples:
        raise DataError(_too_few(generator, candidates, sum(left_out.values())))
    return explain_gates(samples, seed=seed, query=query) | {"left_out": left_out, "seed": seed}


def _too_few(
    generator: Generator, candidates: Mapping[str, Sequence[Candidate]], left_out: int
) -> str:
    """The message for families that all have too few prompts."""
    counts = ", ".join(f"{len(pairs)} of {family}" for family, pairs in candidates.items())
    room = generator.cloud.config.max_positions
    long = f"; {left_out} do not fit into the cloud's context of {room} tokens" if left_out else ""
    return (
        f"there are too few prompts ({counts or 'none'}){long}. "
        f"Expected {FEWEST} or more different ones of a family."
    )
