"""The first part of the nano generator's training: tool calls alone.

    lorage train experiments/nano_begin.py    # runs/nano/begin0/generator
    lorage train experiments/nano.py          # goes on from there

Dialects of tool calls are small things beside the difference between words and tools: a generator
that sees both from the first step learns words and gives every tool prompt the same gates. One
that can tell dialects apart already keeps that when words join.
"""

from lorage_jax import nano
from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, OptimizerConfig, Source

TOOLS = Source("synthetic", "synthetic", name="tools")


def config(seed: int = 0) -> ExperimentConfig:
    return ExperimentConfig(
        cloud=str(nano.CLOUD),
        edge=str(nano.EDGE),
        out=f"runs/nano/begin{seed}",
        data=DataConfig(
            sources=(TOOLS,),
            prompts_per_batch=16,
            queries_per_prompt=4,
            max_prompt_tokens=384,
            max_query_tokens=112,
            prompt_chunks=2,  # here shorter and longer ones; then words and tools
            min_bucket=48,  # few shapes, so few programs to compile
        ),
        # One router for all layers normalises over words and tools together and loses the dialects.
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
