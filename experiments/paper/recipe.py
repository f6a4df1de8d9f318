"""The recipe that the paper's three models share (arXiv 2506.11638).

The cloud is LLaMA3-8B, or the model that LORAGE_CLOUD names. A batch has 64 rows of at most 2048
tokens, and training takes four epochs of the six training sets.

LORAGE_MODELS is the folder that holds the models' Hugging Face folders, named as on the Hub (by
default ~/.cache/lorage-models). LORAGE_DATA is a folder with `commonsense/<task>/train.jsonl(.gz)`
and `alpaca/alpaca.jsonl(.gz)`; without it, the data come from the Hub.
"""

import os
from pathlib import Path

from lorage_jax.bundled import kept_models
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)

MODELS = kept_models()
DATA = os.environ.get("LORAGE_DATA")
CLOUD = os.environ.get("LORAGE_CLOUD", "Meta-Llama-3-8B")
BATCH, EPOCHS, LENGTH = 64, 4, 2048
ROWS = 8  # packed rows per batch: one or more per device of the data axes
# Task -> (Hub name, rows of its train split); sources are mixed in proportion to their rows.
TASKS = {
    "arc_challenge": ("allenai/ai2_arc", 1119),
    "arc_easy": ("allenai/ai2_arc", 2251),
    "openbookqa": ("allenai/openbookqa", 4957),
    "boolq": ("google/boolq", 9427),
    "social_iqa": ("lighteval/siqa", 33_410),
}
ALPACA = ("yahma/alpaca-cleaned", 37_658)


def recipe(edge: str) -> ExperimentConfig:
    """The paper's training run for the edge in the folder `edge` under MODELS."""
    rows = ALPACA[1] + sum(count for _, count in TASKS.values())
    return ExperimentConfig(
        cloud=str(MODELS / CLOUD),
        edge=str(MODELS / edge),
        out=f"runs/paper_{edge}",
        data=DataConfig(
            sources=sources(),
            prompts_per_batch=BATCH,  # one query per prompt, as in the paper
            max_prompt_tokens=LENGTH,
            max_query_tokens=LENGTH,
            # Most texts are far shorter: with one row per text, 87 % of a batch would be padding.
            packed_rows=ROWS,
        ),
        generator=GeneratorConfig.paper(),
        optimizer=OptimizerConfig(
            learning_rate=2e-5, betas=(0.9, 0.999), weight_decay=0.1, warmup_steps=50
        ),
        steps=EPOCHS * rows // BATCH,
        mesh=MeshConfig(data=-1, fsdp=-1, tensor=-1),
        dtype="bfloat16",
        remat="full",
        save_every=200,
    )


def sources() -> tuple[Source, ...]:
    """The five tasks with 0 to 5 samples in the prompt, and Alpaca's rows with an input.

    Alpaca's instructions replace the paper's rewritten ones, which are not public. Its number of
    rows is that of the paper's selection.
    """
    tasks = [
        Source(_place(f"commonsense/{name}", hub), "choices", name, weight=float(count))
        for name, (hub, count) in TASKS.items()
    ]
    hub, count = ALPACA
    return (*tasks, Source(_place("alpaca/alpaca", hub), needs_input=True, weight=float(count)))


def _place(local: str, hub: str) -> str:
    if DATA is None:
        return hub
    found = [Path(DATA, local + ending) for ending in ("", ".jsonl", ".jsonl.gz")]
    return str(next((path for path in found if path.exists()), found[-1]))
