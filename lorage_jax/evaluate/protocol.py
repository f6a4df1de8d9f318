"""The LoRA-Gen protocol on lm-eval's tasks: the prompt goes to the cloud, the question to the edge.

A task's system prompt is its description and few-shot samples, which are drawn once. The edge's
text is set by a few fields of lm-eval's definition; the rest of the definition is unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

from lorage_jax.data.records import Row
from lorage_jax.data.task_rows import Example
from lorage_jax.data.task_table import TASKS
from lorage_jax.data.tasks import Task
from lorage_jax.data.templates import Template, few_shot_prompt, question
from lorage_jax.errors import ConfigError
from lorage_jax.generator.generator import Generator

# How texts become tokens: as in our training, or as in lm-eval's `hf` model.
Encoding = Literal["trained", "harness"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

RAW, END = "{% raw %}", "{% endraw %}"  # Jinja does not expand what is between these marks
ENDRAW = re.compile(r"\{%(?=[-+]?\s*endraw)")


@dataclass(frozen=True)
class SystemPrompt:
    """A task's system prompt, and the number of samples in it."""

    text: str
    shots: int


def system_prompt(
    generator: Generator, task: Task, harness_task: Any, shots: int, seed: int
) -> SystemPrompt:
    """Builds a task's prompt for all records: its description and `shots` few-shot samples.

    If it exceeds the cloud's context, samples are dropped, the last ones first.

    Raises ConfigError if there is neither a description nor a sample.
    """
    rows = list(harness_task.fewshot_docs()) if shots else []
    drawn = Random(f"{task.name}/{seed}").sample(rows, min(shots, len(rows)))
    samples = [(e.user, e.target) for e in (_example(task, row) for row in drawn)]
    while samples and not _fits(generator, few_shot_prompt(task.descriptions[0], samples)):
        samples.pop()
    text = few_shot_prompt(task.descriptions[0], samples).strip()
    if not text:
        raise ConfigError(
            f"{task.name} has no definition, so its prompt needs samples: give --shots of 1 or "
            "more, and a cloud with room for them."
        )
    return SystemPrompt(text, len(samples))


def partner(task: Task, tasks: Sequence[Task]) -> Task:
    """The task whose prompt is the shuffled control of `task`: of another kind, if possible one of
    `tasks`.
    """

    def after(order: Sequence[Task]) -> list[Task]:
        at = next((i for i, other in enumerate(order) if other.name == task.name), -1)
        turned = [*order[at + 1 :], *order[: max(at, 0)]]
        return [other for other in turned if other.kind != task.kind]

    return (after(tasks) or after(list(TASKS.values())))[0]


def _fits(generator: Generator, prompt: str) -> bool:
    size = len(generator.reads.read(prompt))
    return size + generator.edge.layers <= generator.cloud.config.max_positions


def _example(task: Task, row: Row) -> Example:
    return task.to_example(row, f"a few-shot sample of {task.name}")


def verbatim(text: str) -> str:
    """A template that lm-eval expands to this very text, whatever marks of templates are in it."""
    parts = ENDRAW.split(text)  # the mark that would end the raw text is made of two pieces of it
    return f"{RAW}{f'{{%{END}{RAW}'.join(parts)}{END}"


def edge_text(
    task: Task, template: Encoding, turns: Template | None, system: str | None = None
) -> dict[str, Any]:
    """Fields of lm-eval's definition that set the edge's text.

    Args:
        task: its description.
        template: `trained`, the turns of training with the choices as answers, or `harness`,
            lm-eval's own text.
        turns: the edge's turns, for `trained`.
        system: a system prompt to put in front, in the edge's own context.
    """
    if template == "harness":
        return {} if system is None else {"description": verbatim(f"{system}\n\n")}
    assert turns is not None, "an edge with a tokenizer"

    def asked(frame: Callable[[Example], Any]) -> Callable[[Row], Any]:
        return lambda row: frame(_example(task, row))

    def prompt(example: Example) -> str:
        return turns.text(question(example.user, system))

    if task.free_text:
        return {"doc_to_text": asked(prompt), "doc_to_target": asked(lambda e: e.target)}
    return {
        "doc_to_text": asked(prompt),
        "doc_to_choice": asked(lambda e: list(e.choices)),
        "doc_to_target": asked(lambda e: e.label),
        "target_delimiter": turns.lead,
    }
