"""Trains what LoraHub combines: LoRAs of single word tasks, and solved examples of every question.

    python experiments/nano/loras.py             # -> runs/nano/loras-0
    python experiments/nano/loras.py --seed 1    # -> runs/nano/loras-1
    lorage compare experiments/nano/compare.py --methods lorahub,bare --seeds 2

Hardware: two CPU cores. Wall time: 12 minutes; seconds if all LoRAs are there.

The tasks are drawn from the 841 seen ones, as many as in LoraHub's paper (arXiv 2307.13269, Section
4.1). `examples.jsonl` holds five solved examples of every prompt that `compare.py` asks about, none
of which is asked: those that the comparison gives LoraHub for its search, for use without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
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

LORAS, EXAMPLES_EACH, STEPS = 20, 5, 100


def folder(seed: int) -> Path:
    return recipe.RUNS / f"loras-{seed}"


def experiment(number: int, task: str, seed: int) -> ExperimentConfig:
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
        out=str(folder(seed) / f"{number:02}"),
        seed=seed,
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the tasks and the trainings")
    seed = parser.parse_args().seed
    tasks = Random(seed).sample([task.name for task in words.tasks("train")], LORAS)
    for number, task in enumerate(tasks):
        print(f"LoRA {number + 1} of {LORAS}: {task}", flush=True)
        train(experiment(number, task, seed), resume=True)
    rows = "".join(json.dumps(row) + "\n" for row in examples())
    write_file(folder(seed) / EXAMPLES, rows, overwrite=True)


if __name__ == "__main__":
    main()
