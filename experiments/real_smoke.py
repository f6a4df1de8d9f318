"""Trains a generator on real weights and real data, small enough for two CPU cores.

    lorage train experiments/real_smoke.py
    lorage specialize --generator runs/real_smoke/generator --prompt PROMPT --out runs/real_special

Hardware: two CPU cores. Wall time: minutes. Expected result: the loss falls from 3.97 to 3.25, and
the specialised model agrees with transformers to 1.8e-5. The run tests the whole path on a real
checkpoint, tokenizer and data; it does not show quality, as a model of this size cannot answer.

The trained LLaMA `stories260K` (0.26 M parameters) is both edge and cloud; the records are Alpaca's
with an input (instruction = system prompt) and ARC's, with few-shot samples in the prompt.
LORAGE_SHARED is the folder that holds `models/stories260K` and `data/` (default: ../shared).
"""

import os
from pathlib import Path

from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, OptimizerConfig, Source
from lorage_jax.errors import ConfigError

SHARED = Path(os.environ.get("LORAGE_SHARED", Path(__file__).parents[2] / "shared"))


def config() -> ExperimentConfig:
    if not SHARED.is_dir():
        raise ConfigError(f"LORAGE_SHARED is {SHARED}; expected the folder of models/ and data/.")
    model = str(SHARED / "models" / "stories260K")
    arc = SHARED / "data" / "commonsense"
    return ExperimentConfig(
        cloud=model,
        edge=model,
        out="runs/real_smoke",
        data=DataConfig(
            sources=(
                Source(str(SHARED / "data/alpaca/alpaca.jsonl.gz"), needs_input=True, limit=4000),
                Source(str(arc / "arc_easy"), "choices", "arc_easy", shots=(0, 2)),
                Source(str(arc / "arc_challenge"), "choices", "arc_challenge", shots=(0, 2)),
            ),
            prompts_per_batch=8,
            queries_per_prompt=2,
            max_prompt_tokens=384,
            max_query_tokens=256,
            min_bucket=64,
        ),
        generator=GeneratorConfig.paper(),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
        steps=200,
        dtype="float32",
        remat="none",
        save_every=50,
    )
