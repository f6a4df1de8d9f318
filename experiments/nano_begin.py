"""The first part of the nano generator's training: words and tool calls by halves.

lorage train experiments/nano_begin.py    # runs/nano/begin0/generator
lorage train experiments/nano.py          # goes on from there
"""

from lorage_jax import nano
from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, OptimizerConfig, Source


def config(seed: int = 0) -> ExperimentConfig:
    return ExperimentConfig(
        cloud=str(nano.CLOUD),
        edge=str(nano.EDGE),
        out=f"runs/nano/begin{seed}",
        data=DataConfig(
            sources=(
                Source("synthetic", "synthetic", name="words"),
                Source("synthetic", "synthetic", name="tools"),
            ),
            prompts_per_batch=16,
            queries_per_prompt=4,
            max_prompt_tokens=384,
            max_query_tokens=112,
            prompt_chunks=2,  # words, then tools, which are longer
            min_bucket=48,  # few shapes, so few programs to compile
        ),
        # One router for all layers normalises over words and tools together: the dialects, small
        # beside that difference, are not told apart.
        generator=GeneratorConfig(
            top_k=4, combine="products", router_scope="per_layer", dropout=0.0
        ),
        optimizer=OptimizerConfig(4e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        steps=900,
        dtype="float32",
        remat="none",
        seed=seed,
        save_every=250,
        log_every=25,
    )
