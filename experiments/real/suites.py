"""One LoRA for all tasks and LoRA-Gen, trained alike on commonsense questions and tool calls.

    python experiments/real/prepare.py --data DATA
    lorage train experiments/real/suites.py:lora             # without the prompt
    lorage train experiments/real/suites.py:lora_in_context  # the prompt in the edge's context
    lorage train experiments/real/suites.py:lora_gen

    python experiments/real/table2.py --run runs/real/suites/lora    # beside the bundled generator
    python experiments/real/table2.py --generator runs/real/suites/lora_gen/generator \
        --run runs/real/suites/lora                                  # trained alike

`table3.py` takes the same options. Hardware: one CPU core. Wall time: 30 minutes for `lora`; the
others read the prompts as well, about four times the tokens, and were not run. Result of `lora`
beside the bundled generator, which was trained on sixty times as many questions of these suites:
`table2_methods.md` and `table3_methods.md`.
"""

from __future__ import annotations

import dataclasses

import generator as recipe

from lorage_jax.config import ExperimentConfig, Source
from lorage_jax.methods.lora import LoraSettings

METHODS = {
    "lora": ("lora", LoraSettings()),
    "lora_in_context": ("lora", LoraSettings(prompt="in_context")),
    "lora_gen": ("lora_gen", None),
}
OUT = "runs/real/suites"
STEPS = 100


def config(name: str = "lora_gen") -> ExperimentConfig:
    """The run of one of METHODS; the cloud has no adapters, and so no backward pass."""
    method, settings = METHODS[name]
    base = recipe.config("cpu")
    sources = [
        Source(str(recipe.DATA / f"commonsense/{task}.jsonl"), "choices", task)
        for task in recipe.COMMONSENSE
    ]
    tools = Source(str(recipe.DATA / "tools.jsonl"), weight=3.0)
    return dataclasses.replace(
        base,
        out=f"{OUT}/{name}",
        method=method,
        settings=settings,
        data=dataclasses.replace(
            base.data,
            sources=(*sources, tools),
            queries_per_prompt=2,
            max_query_tokens=192,
            min_bucket=384,
            packed_rows=2,
        ),
        generator=dataclasses.replace(base.generator, cloud_rank=0),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=10),
        steps=STEPS,
        dtype="float32",
        save_every=STEPS // 4,
    )
