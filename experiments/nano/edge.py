"""The edge of the nano pair: qwen2, 6 layers, 1.1 M parameters, a tokenizer of its own.

    lorage pretrain experiments/nano_edge.py

It learns the built-in world of tasks, most of the time with the system prompt in its context, and
a little English. LORAGE_SHARED names the folder that holds `data/text` (default: ../shared).
"""

import os
from pathlib import Path

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig, Source
from lorage_jax.models.presets import plain_decoder

SHARED = Path(os.environ.get("LORAGE_SHARED", Path(__file__).parents[3] / "shared"))


def corpora() -> tuple[Corpus, ...]:
    """Easy tasks first: a model that starts with all of them learns formats, but not to copy."""
    prose = str(SHARED / "data/text/gutenberg_small.jsonl.gz")
    easy = Source("synthetic", "synthetic", name="easy", weight=0.15)
    words = Source("synthetic", "synthetic", name="words", weight=0.6)
    tools = Source("synthetic", "synthetic", name="tools", weight=0.2)
    text = Source(prose, "text", limit=20, weight=0.05)
    return (
        Corpus(easy, documents=15, rows=8, row_tokens=192, queries=3),
        Corpus(words, documents=15, rows=8, row_tokens=192, queries=3, steps=(500, None)),
        Corpus(tools, documents=4, rows=4, row_tokens=448, queries=3, steps=(1000, None)),
        Corpus(text, documents=8, rows=8, row_tokens=192, steps=(1000, None)),
    )


def config() -> PretrainConfig:
    return PretrainConfig(
        model=plain_decoder(
            "qwen2",
            vocab_size=1536,
            width=128,
            layers=6,
            heads=4,
            kv_heads=2,
            ffn_width=256,
            max_positions=1024,
            tied_head=True,
        ),
        out="runs/nano_edge",
        corpora=corpora(),
        steps=6000,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=100),
        remat="none",
        save_every=250,
        log_every=50,
    )
