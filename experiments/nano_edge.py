"""The edge of the bundled pair: qwen2, 6 layers, 1.1 M parameters, a tokenizer of its own.

    lorage pretrain experiments/nano_edge.py

It learns the built-in world of tasks, most of the time with the system prompt in its context, and
a little English. LORAGE_SHARED names the folder that holds `data/text` (default: ../shared).
"""

import os
from pathlib import Path

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig, Source
from lorage_jax.evaluate.shapes import plain_decoder

SHARED = Path(os.environ.get("LORAGE_SHARED", Path(__file__).parents[2] / "shared"))


def corpora() -> tuple[Corpus, ...]:
    """Words, tools and prose, in about equal numbers of slots a batch."""
    prose = str(SHARED / "data/text/gutenberg_small.jsonl.gz")
    words = Source("synthetic", "synthetic", name="words", weight=0.65)
    tools = Source("synthetic", "synthetic", name="tools", weight=0.27)
    return (
        Corpus(words, documents=30, rows=16, row_tokens=192, queries=3),
        Corpus(tools, documents=6, rows=6, row_tokens=448, queries=3),
        Corpus(Source(prose, "text", limit=20, weight=0.08), documents=12, rows=12),
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
        steps=4500,
        optimizer=OptimizerConfig(learning_rate=3e-3, betas=(0.9, 0.95), warmup_steps=100),
        remat="none",
        save_every=250,
        log_every=50,
    )
