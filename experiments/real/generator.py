"""A generator for SmolLM2-135M-Instruct that is its own cloud, for all three suites.

python experiments/real/prepare.py --data DATA
lorage train experiments/real/generator.py        # two CPU cores
lorage train experiments/real/generator.py:gpu    # one GPU
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lorage_jax.bundled import kept_models
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    HeldOut,
    OptimizerConfig,
    PromptForms,
    Source,
)

MODELS = kept_models()
DATA = Path(os.environ.get("LORAGE_REAL_DATA", "runs/real/data"))
EDGE = "SmolLM2-135M-Instruct"
COMMONSENSE = ("arc_challenge", "arc_easy", "openbookqa", "boolq", "social_iqa")
# Held out: groups of tasks, a fifth of the wordings, a fifth of the inputs.
HELD_OUT = HeldOut(tasks=0.16, paraphrases=0.2, instances=0.2, seed=5, by="group")
SETTING = GeneratorConfig(
    experts=8,
    top_k=4,
    rank=6,  # with all else, a generator of 24 MB in bfloat16
    alpha=6.0,
    dropout=0.0,
    combine="products",
    router_scope="per_layer",
    cloud_rank=8,
    cloud_alpha=8.0,
)


def config(stage: str = "cpu") -> ExperimentConfig:
    """The run within the time of one machine: `cpu` or `gpu`."""
    base = ExperimentConfig(
        cloud=str(MODELS / EDGE),
        edge=str(MODELS / EDGE),
        out=f"runs/real/{stage}",
        data=DataConfig(
            sources=sources(),
            prompts_per_batch=8,
            queries_per_prompt=4,
            max_prompt_tokens=640,
            max_query_tokens=256,
            min_bucket=512,
            packed_rows=4,
        ),
        generator=SETTING,
        optimizer=OptimizerConfig(
            3e-3, "muon", betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=20
        ),
        steps=300,
        dtype="bfloat16",
        remat="full",
        save_every=50,
    )
    if stage == "cpu":
        return base
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, prompts_per_batch=128, packed_rows=32, min_bucket=640),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=60),
        steps=900,
    )


def sources() -> tuple[Source, ...]:
    """All training data; half of the prompts are instructions of the first suite."""
    tasks = {"kind": "tasks", "held_out": HELD_OUT}
    forms = PromptForms(definition=3.0, samples=1.0, both=1.0)
    return (
        Source(str(DATA / "instructions.jsonl"), **tasks, forms=forms, weight=50.0),
        Source(str(DATA / "t0.jsonl"), **tasks, shots=(1, 3), weight=5.0),
        Source(str(DATA / "alpaca.jsonl"), weight=20.0),
        *(
            Source(str(DATA / f"commonsense/{name}.jsonl"), "choices", name, weight=3.0)
            for name in COMMONSENSE
        ),
        Source(str(DATA / "tools.jsonl"), weight=10.0),
    )
