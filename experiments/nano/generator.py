"""Trains the generator of the nano pair: first on tool calls, then on words and tool calls.

    lorage train experiments/nano/generator.py:tools    # 250 steps -> runs/nano/begin0/generator
    lorage train experiments/nano/generator.py          # 1000 more -> runs/nano/seed0/generator

Hardware: two CPU cores. Wall time: 47 minutes for both stages with the evaluation of `table.py`.
Expected result: the row of the specialised edge in `experiments/results/nano.md`.

Dialects of tool calls differ much less from each other than from word tasks. A generator that sees
both from the first step learns the words and gives every tool prompt the same gates. One that has
already learned to distinguish the dialects keeps doing so when words are added.
"""

import dataclasses
from pathlib import Path

from stages import stage_of

from lorage_jax import nano
from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, OptimizerConfig, Source

RUNS = Path("runs/nano")
STAGES = ("tools", "both")
TOOLS = Source("synthetic", "synthetic", name="tools")
WORDS = Source("synthetic", "synthetic", name="words")


def config(stage: str = "both", seed: int = 0) -> ExperimentConfig:
    """The run of one stage; `both` continues from the generator of `tools`."""
    return (tools, both)[stage_of(STAGES, stage)](seed)


def tools(seed: int) -> ExperimentConfig:
    """Tool calls alone."""
    return ExperimentConfig(
        cloud=str(nano.CLOUD),
        edge=str(nano.EDGE),
        out=str(RUNS / f"begin{seed}"),
        data=DataConfig(
            sources=(TOOLS,),
            prompts_per_batch=16,
            queries_per_prompt=4,
            max_prompt_tokens=384,
            max_query_tokens=112,
            prompt_chunks=2,  # shorter and longer prompts here; words and tools later
            min_bucket=48,  # few shapes, so few programs to compile
        ),
        # A shared router normalises over words and tools together and loses the dialects.
        generator=GeneratorConfig(
            top_k=4, combine="products", router_scope="per_layer", dropout=0.0
        ),
        optimizer=OptimizerConfig(4e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        steps=250,
        dtype="float32",
        remat="none",
        seed=seed,
        save_every=250,
        log_every=25,
    )


def both(seed: int) -> ExperimentConfig:
    """Words and tool calls in equal shares."""
    begin = tools(seed)
    return dataclasses.replace(
        begin,
        init=str(Path(begin.out) / "generator"),
        out=str(RUNS / f"seed{seed}"),
        data=dataclasses.replace(begin.data, sources=(WORDS, TOOLS)),
        optimizer=dataclasses.replace(begin.optimizer, learning_rate=3e-3, warmup_steps=20),
        steps=1000,
    )
