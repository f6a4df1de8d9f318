"""The paper's switches on a real model, and the number of tasks in training, in short runs.

    python experiments/side_by_side.py experiments/real/switches.py --at-once 12   # one GPU
    lorage compare experiments/real/switches.py --no-costs \
        --json experiments/results/real/switches.json --table experiments/results/real/switches.md

Runs and questions are those of `methods.py`, and `lora_gen` is the same run. The rows are the
paper's Table 5 (number of experts), 6 (weight of the balance term) and 8 (Gumbel), and those
without adapters in the cloud. `tasks_10`, `tasks_30` and `tasks_103` are trained on instructions
for that many tasks alone; all others on all suites, of which the instructions are a half.
"""

import dataclasses
from typing import Any

import generator as recipe
import methods

from lorage_jax.config import CompareConfig, Source

SWITCHES: dict[str, dict[str, Any]] = {
    "experts_4": {"experts": 4, "top_k": 2},
    "experts_12": {"experts": 12},
    "top_k_2": {"top_k": 2},
    "top_k_8": {"top_k": 8},
    "cv_weight_0": {"cv_weight": 0.0},
    "cv_weight_0.1": {"cv_weight": 0.1},
    "gumbel": {"routing": "gumbel"},
    "no_cloud_adapters": {"cloud_rank": 0},
}
TASKS = {"tasks_10": "_10", "tasks_30": "_30", "tasks_103": ""}


def config() -> CompareConfig:
    base = methods.short_run()
    rows: dict[str, dict[str, Any]] = {"lora_gen": {}}
    for name, changed in SWITCHES.items():
        generator = dataclasses.replace(base.generator, **changed)
        rows[name] = {"method": "lora_gen", "generator": generator}
    for name, suffix in TASKS.items():
        instructions = dataclasses.replace(
            base.data.sources[0], path=str(recipe.DATA / f"instructions{suffix}.jsonl")
        )
        sources: tuple[Source, ...] = (instructions,)
        data = dataclasses.replace(base.data, sources=sources)
        rows[name] = {"method": "lora_gen", "data": data}
    return CompareConfig(base, rows, methods.questions(), methods.FIGURES)
