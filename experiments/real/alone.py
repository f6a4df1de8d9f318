"""Short runs on instructions alone, on a real model: do they carry over to unseen kinds of tasks?

    python experiments/side_by_side.py experiments/real/alone.py --methods lora_in_context   # a GPU
    python experiments/side_by_side.py experiments/real/alone.py --seeds 3 --at-once 8
    lorage compare experiments/real/alone.py --seeds 3 --no-costs \
        --json experiments/results/real/alone.json --table experiments/results/real/alone.md

Runs and questions are those of `methods.py`, but all prompts in training are instructions of its
first suite, 103 tasks; `with_alpaca` has Alpaca's rows with an input beside them. `longer` has as
many prompts as the bundled generator saw of that suite. `tuned_cards` and `tuned_fresh` are the
replies' Table 12: five solved samples of a task, which `in_context_5` reads, train the card of its
prompt or a fresh LoRA. `distilled` learns from `lora_in_context` of seed 0, which must be there.
Not run yet.
"""

import dataclasses
from pathlib import Path

import generator as recipe
import methods

from lorage_jax.config import CompareConfig
from lorage_jax.methods.lora import LoraSettings
from lorage_jax.methods.lora_gen import LoraGenSettings

OUT = "runs/real/alone"


def config() -> CompareConfig:
    base = methods.short_run()
    instructions, _, alpaca, *_ = base.data.sources
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
            "bare": {},
            "in_context": {},
            "in_context_5": {"method": "in_context", "samples": 5},
            "lora_gen": {},
            "longer": {"method": "lora_gen", **longer},
            "with_alpaca": {
                "method": "lora_gen",
                "data": dataclasses.replace(data, sources=(instructions, alpaca)),
            },
            "lora": {"settings": LoraSettings()},
            "lora_in_context": {"method": "lora", "settings": LoraSettings(prompt="in_context")},
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
