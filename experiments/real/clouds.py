"""Which cloud? SmolLM2-135M-Instruct under three of them, trained alike (the replies' Table 14).

    python experiments/real/prepare.py --data DATA
    python experiments/side_by_side.py experiments/real/clouds.py --at-once 2 --pin
    lorage compare experiments/real/clouds.py --no-costs \
        --json experiments/results/real/clouds.json --table experiments/results/real/clouds.md

Hardware: two CPU cores. Wall time on one of them, beside other work: 40 minutes for the training
under SmolLM2 or Gemma, 75 under Qwen, and 20 to 30 for the questions. A run goes on where it was
stopped. Expected result: exact match of 0.12 to 0.17 on seen tasks and about 0.1 on unseen kinds;
no cloud is significantly above another.
"""

import dataclasses
from pathlib import Path

import generator as recipe

from lorage_jax.config import (
    CompareConfig,
    DataConfig,
    ExperimentConfig,
    OptimizerConfig,
    PromptForms,
    Source,
    TaskQuestions,
)
from lorage_jax.methods.lora import LoraSettings

GEMMA, QWEN = "gemma-3-270m", "Qwen2.5-Coder-0.5B-Instruct"
FIGURES = Path(__file__).parents[1] / "results" / "real"
STEPS = 80


def small_run(cloud: str, edge: str, out: str) -> ExperimentConfig:
    """A run for two CPU cores: instructions of 103 tasks, without samples; a frozen cloud.

    Without adapters in the cloud only its meta tokens have a backward pass.
    """
    instructions = Source(
        str(recipe.DATA / "instructions.jsonl"),
        "tasks",
        held_out=recipe.HELD_OUT,
        forms=PromptForms(definition=1.0, samples=0.0, both=0.0),
    )
    return ExperimentConfig(
        cloud=str(recipe.MODELS / cloud),
        edge=str(recipe.MODELS / edge),
        out=out,
        data=DataConfig(
            sources=(instructions,),
            prompts_per_batch=8,
            queries_per_prompt=4,
            max_prompt_tokens=96,
            max_query_tokens=128,
            min_bucket=320,
            packed_rows=2,
        ),
        generator=dataclasses.replace(recipe.SETTING, cloud_rank=0),
        optimizer=OptimizerConfig(
            3e-3, "muon", betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=10
        ),
        steps=STEPS,
        dtype="float32",
        save_every=STEPS // 4,
    )


def questions() -> TaskQuestions:
    """Seen tasks in seen and in unseen wordings, and unseen kinds of tasks."""
    return TaskQuestions(
        str(recipe.DATA / "instructions.jsonl"),
        held_out=recipe.HELD_OUT,
        prompts=24,
        queries=8,
        longest_answer=24,
    )


def config() -> CompareConfig:
    base = small_run(recipe.EDGE, recipe.EDGE, "runs/real/clouds")
    return CompareConfig(
        base=base,
        methods={
            "bare": {},
            "in_context": {},
            "lora": {"settings": LoraSettings()},
            "lora_gen": {},
            "gemma": {"method": "lora_gen", "cloud": str(recipe.MODELS / GEMMA)},
            "qwen": {"method": "lora_gen", "cloud": str(recipe.MODELS / QWEN)},
        },
        questions=questions(),
        figures=str(FIGURES / "clouds"),
    )
