"""Short runs on instructions alone, on a real model: do they carry over to unseen kinds of tasks?

    python experiments/side_by_side.py experiments/real/alone.py --methods lora_in_context   # a GPU
    python experiments/side_by_side.py experiments/real/alone.py --seeds 3 --at-once 8
    lorage compare experiments/real/alone.py --seeds 3 --no-costs \
        --json experiments/results/real/alone.json --table experiments/results/real/alone.md

    python experiments/side_by_side.py experiments/real/alone.py:cpu --at-once 2 --pin  # two cores
    lorage compare experiments/real/alone.py:cpu --no-costs \
        --json experiments/results/real/alone_cpu.json \
        --table experiments/results/real/alone_cpu.md

Runs and questions are those of `methods.py`, but all prompts in training are instructions of its
first suite, 103 tasks; `with_alpaca` has Alpaca's rows with an input beside them. `longer` has as
many prompts as the bundled generator saw of that suite. `tuned_cards` and `tuned_fresh` are the
replies' Table 12: five solved samples of a task, which `in_context_5` reads, train the card of its
prompt or a fresh LoRA. `distilled` learns from `lora_in_context` of seed 0, which must be there.
Not run yet.

`cpu` has runs and questions of the size of `clouds.py`: 500 steps of 16 prompts, as many prompts as
above, in bfloat16, with all eight experts mixed and no adapters in the cloud. Of its rows,
`lora_gen` was run: 100 minutes for the training and 5 for its questions, on one core of an Intel
Xeon with AMX, seed 0, with other work on the second core. Result: exact match of 0.35 on seen and
0.43 on unseen wordings, 0.13 and 0.08 under another task's card; 0.12 on unseen kinds of tasks,
where no control is significantly below. `with_alpaca`, `lora` and `lora_in_context` were not.
"""

import dataclasses
from pathlib import Path
from typing import Any

import clouds
import generator as recipe
import methods

from lorage_jax.config import CompareConfig, DataConfig
from lorage_jax.methods.lora import LoraSettings
from lorage_jax.methods.lora_gen import LoraGenSettings

OUT = "runs/real/alone"


def config(machine: str = "gpu") -> CompareConfig:
    """The rows that one machine has time for: `gpu` or `cpu`."""
    if machine == "cpu":
        return cpu()
    base = methods.short_run()
    instructions = base.data.sources[0]
    data = dataclasses.replace(base.data, sources=(instructions,))
    base = dataclasses.replace(base, out=OUT, data=data)
    large = recipe.config("gpu")
    longer = {
        "data": dataclasses.replace(large.data, sources=(instructions,)),
        "optimizer": large.optimizer,
        "steps": large.steps // 2,
        "save_every": large.steps // 2,
    }
    return CompareConfig(
        base=base,
        methods={
            **rows(data),
            "longer": {"method": "lora_gen", **longer},
            "distilled": {
                "method": "lora_gen",
                "settings": LoraGenSettings(0.5, f"{OUT}/lora_in_context-0/lora"),
            },
            "tuned_cards": {"after": "lora_gen", "samples": 5},
            "tuned_fresh": {"after": "lora_gen", "samples": 5},
        },
        questions=methods.questions(),
        figures=str(Path(methods.FIGURES).parent / "alone"),
    )


def cpu() -> CompareConfig:
    """Fewer rows, in runs that two CPU cores can do."""
    base = clouds.small_run(recipe.EDGE, recipe.EDGE, "runs/real/alone_cpu")
    base = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, prompts_per_batch=16, packed_rows=4, min_bucket=256),
        generator=dataclasses.replace(base.generator, top_k=base.generator.experts),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=20),
        steps=500,
        dtype="bfloat16",
        save_every=50,
    )
    return CompareConfig(
        base=base,
        methods=rows(base.data),
        questions=clouds.questions(),
        figures=str(clouds.FIGURES / "alone_cpu"),
    )


def rows(data: DataConfig) -> dict[str, dict[str, Any]]:
    """The rows of every machine."""
    return {
        "bare": {},
        "in_context": {},
        "in_context_5": {"method": "in_context", "samples": 5},
        "lora_gen": {},
        "with_alpaca": {"method": "lora_gen", "data": with_alpaca(data)},
        "lora": {"settings": LoraSettings()},
        "lora_in_context": {"method": "lora", "settings": LoraSettings(prompt="in_context")},
    }


def with_alpaca(data: DataConfig) -> DataConfig:
    """These data and Alpaca's rows, two of seven prompts, as in the bundled generator's run."""
    alpaca = recipe.sources()[2]
    (instructions,) = data.sources
    return dataclasses.replace(
        data, sources=(dataclasses.replace(instructions, weight=50.0), alpaca)
    )
