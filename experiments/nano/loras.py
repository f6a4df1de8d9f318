"""Trains what LoraHub combines: LoRAs of single word tasks, and solved examples of every question.

    python experiments/nano/loras.py                                     # -> runs/nano/loras
    lorage compare experiments/nano/compare.py --methods lorahub,bare

Hardware: two CPU cores. Wall time: 12 minutes; seconds if all LoRAs are there.

The tasks are drawn from the 841 seen ones, as many as in LoraHub's paper (arXiv 2307.13269, Section
4.1). `examples.jsonl` holds five solved examples of every prompt that `compare.py` asks about, none
of which is asked: LoraHub searches for its weights with them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import compare
import generator as recipe

from lorage_jax.compare.shots import solved
from lorage_jax.config import ExperimentConfig, WorldQuestions
from lorage_jax.files.outputs import write_file
from lorage_jax.methods.lora import LoraSettings
from lorage_jax.methods.lorahub import EXAMPLES
from lorage_jax.methods.training import train
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import words
from lorage_jax.world.samples import draw_world

FOLDER = recipe.RUNS / "loras"
LORAS, EXAMPLES_EACH, SEED, STEPS = 20, 5, 0, 100


def experiment(number: int, task: str) -> ExperimentConfig:
    """The run of one task: a quarter of the prompts, as all of them say the same."""
    base = compare.config().base
    [source] = base.data.sources
    return dataclasses.replace(
        base,
        method="lora_per_task",
        settings=LoraSettings(),
        optimizer=compare.LORA,
        data=dataclasses.replace(
            base.data,
            sources=(dataclasses.replace(source, task=task),),
            prompts_per_batch=4,
            prompt_chunks=1,
        ),
        out=str(FOLDER / f"{number:02}"),
        steps=STEPS,
        save_every=STEPS,
    )


def examples() -> Iterator[dict[str, Any]]:
    """Solved examples of all prompts that are asked about."""
    asked = compare.config().questions
    assert isinstance(asked, WorldQuestions)
    for sample in draw_world(asked.prompts, asked.queries, asked.seed, families=asked.families):
        prompts = world_prompts.draw_prompts(sample.split, asked.prompts, asked.seed, sample.family)
        for prompt, group in zip(prompts, sample.groups, strict=True):
            for user, target in solved(prompt, group, EXAMPLES_EACH):
                yield {"system": prompt.system, "user": user, "target": target}


def main() -> None:
    tasks = Random(SEED).sample([task.name for task in words.tasks("train")], LORAS)
    for number, task in enumerate(tasks):
        print(f"LoRA {number + 1} of {LORAS}: {task}", flush=True)
        train(experiment(number, task), resume=True)
    rows = "".join(json.dumps(row) + "\n" for row in examples())
    write_file(FOLDER / EXAMPLES, rows, overwrite=True)


if __name__ == "__main__":
    main()
