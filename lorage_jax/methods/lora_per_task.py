"""A baseline: one LoRA for each task, trained on that task's rows and asked on it.

A run trains one task, which its single source names (`Source.task`). The folder to load from is the
result of such a run, or a folder with several. The LoRA of a prompt's task answers; for a task
without one there is nothing, and the bare edge answers, as the fact `trained` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.sources import source_kind, task_marks
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import home_path
from lorage_jax.files.manifest import manifest_of
from lorage_jax.methods.cards import place_cards
from lorage_jax.methods.lora import Lora, LoraSettings
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.methods.trained_loras import combination, read_loras
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of


@dataclass(frozen=True)
class TaskLora:
    """A task with a LoRA: its name, the kind of its source, and `data.sources.task_marks`."""

    name: str
    kind: str
    marks: tuple[str, ...]

    def shared(self, prompt: str) -> int:
        """Characters of the prompt by which it is one of this task; 0 if it is none."""
        task_of = source_kind(self.kind).task_of
        if task_of is not None:
            return len(prompt) if task_of(prompt) == self.name else 0
        return max((len(mark) for mark in self.marks if mark in prompt), default=0)


def closest_task(tasks: Sequence[TaskLora], prompt: str) -> int | None:
    """The number of the prompt's task, or None.

    The longest text in common decides, since the prompt of one task may be part of another's; of
    several as long, the first.
    """
    shared = [task.shared(prompt) for task in tasks]
    return shared.index(max(shared)) if any(shared) else None


@register
@dataclass(frozen=True, eq=False)
class LoraPerTask(Method, Trainable):
    """A LoRA for each task; nothing for a task without one.

    Attributes:
        edge: the model of the cards.
        pool: the LoRAs, one expert each.
        tasks: their tasks, in the same order.
    """

    name: ClassVar[str] = "lora_per_task"
    what: ClassVar[str] = "a LoRA of the prompt's own task, if one was trained; the bare question"
    result: ClassVar[str] = "lora_per_task"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    settings: ClassVar[type | None] = LoraSettings

    edge: Model
    pool: Pool
    tasks: tuple[TaskLora, ...]

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> LoraPerTask:
        if source is None:
            raise ConfigError("lora_per_task needs the folder of trained LoRAs; none was given.")
        source = home_path(source)
        found = read_loras(source, edge)
        tasks = []
        for name in found.names:
            values = manifest_of(source / name)
            if not isinstance(values.get("task"), dict):
                raise WeightsError(f"{source / name} is not a LoRA of one task.")
            task = values["task"]
            tasks.append(TaskLora(task["name"], task["kind"], tuple(task["marks"])))
        return cls(found.edge, found.pool, tuple(tasks))

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        ready: dict[str, Conditioning] = {}
        for prompt in dict.fromkeys(prompts):
            number, weights = closest_task(self.tasks, prompt), np.zeros(len(self.tasks))
            if number is not None:
                weights[number] = 1.0
            facts = {
                "task": None if number is None else self.tasks[number].name,
                "trained": number is not None,
            }
            card = combination(self.edge, self.pool, weights)
            ready[prompt] = Conditioning(card=card, facts=facts)
        return [ready[prompt] for prompt in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return place_cards(edge, self.pool, rows, self.name)

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        settings = settings_of(cls, config)
        if (settings.form, settings.targets, settings.prompt) != ("lora", None, "none"):
            raise ConfigError(
                "lora_per_task trains plain LoRA on the FFN without prompts; leave form, targets "
                "and prompt out of its settings."
            )
        _task(config)
        return Lora.training(config, models, layout)

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        return Lora.finish(config, models, trained, statistics, {"task": _task(config)})


def _task(config: ExperimentConfig) -> dict[str, Any]:
    """The run's task, as a manifest records it. Raises ConfigError unless there is just one."""
    sources = config.data.sources
    if len(sources) != 1 or not sources[0].task:
        raise ConfigError(
            "lora_per_task trains on the rows of one task: expected one source with `task` set, "
            f"got {len(sources)}{'' if len(sources) != 1 else ' without it'}."
        )
    [source] = sources
    return {"name": source.task, "kind": source.kind, "marks": task_marks(source)}
