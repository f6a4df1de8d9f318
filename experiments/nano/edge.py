"""Pretrains the edge of the nano pair: qwen2, 6 layers, 1.1 M parameters, its own tokenizer.

    lorage pretrain experiments/nano/edge.py          # 6000 steps -> runs/nano_edge/model
    lorage pretrain experiments/nano/edge.py:tools    # 3000 more  -> runs/nano_edge_tools/model

Hardware: two CPU cores. Wall time: about two hours for the first stage, at 1.2 s per step (1.0 s
with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, on glibc); the second stage was not timed. Expected
result: the edge with the prompt in context of `experiments/results/nano.md`; curves in
`experiments/results/nano_curves.png`.

The model learns the built-in tasks, mostly with the system prompt in its context, and a little
English; the second stage is mostly tool calls. LORAGE_SHARED is the folder that holds `data/text`
(default: ../shared).
"""

import dataclasses
import os
from pathlib import Path

from stages import stage_of

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig, Source
from lorage_jax.errors import ConfigError
from lorage_jax.hf.family import family_decoder

SHARED = Path(os.environ.get("LORAGE_SHARED", Path(__file__).parents[3] / "shared"))
STAGES = ("start", "tools")


def config(stage: str = "start") -> PretrainConfig:
    """The run of one stage, which continues from the model of the stage before."""
    return (start, tools)[stage_of(STAGES, stage)]()


def start() -> PretrainConfig:
    """From scratch: easy tasks, then words, then tools and prose."""
    return PretrainConfig(
        model=family_decoder(
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
        corpora=start_corpora(),
        steps=6000,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=100),
        remat="none",
        save_every=250,
        log_every=50,
    )


def tools() -> PretrainConfig:
    """Mostly tool calls."""
    return dataclasses.replace(
        start(),
        out="runs/nano_edge_tools",
        init="runs/nano_edge/model",
        corpora=tools_corpora(),
        steps=3000,
        optimizer=OptimizerConfig(1.5e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=2,
    )


def start_corpora() -> tuple[Corpus, ...]:
    """Easy tasks first: a model that starts with all tasks learns formats, but not to copy."""
    if not SHARED.is_dir():
        raise ConfigError(f"LORAGE_SHARED is {SHARED}; expected the folder that holds data/text.")
    prose = str(SHARED / "data/text/gutenberg_small.jsonl.gz")
    easy = Source("synthetic", "synthetic", name="easy", weight=0.15)
    words = Source("synthetic", "synthetic", name="words", weight=0.6)
    calls = Source("synthetic", "synthetic", name="tools", weight=0.2)
    text = Source(prose, "text", limit=20, weight=0.05)
    return (
        Corpus(easy, documents=15, rows=8, row_tokens=192, queries=3),
        Corpus(words, documents=15, rows=8, row_tokens=192, queries=3, steps=(500, None)),
        Corpus(calls, documents=4, rows=4, row_tokens=448, queries=3, steps=(1000, None)),
        Corpus(text, documents=8, rows=8, row_tokens=192, steps=(1000, None)),
    )


def tools_corpora() -> tuple[Corpus, ...]:
    """Tool calls, with some words and prose so that the model does not forget them."""
    _, words, _, text = start_corpora()
    calls = Source("synthetic", "synthetic", name="tools", weight=0.65)
    return (
        Corpus(calls, documents=4, rows=4, row_tokens=640, queries=5),
        dataclasses.replace(weighed(words, 0.32), steps=(0, None)),
        dataclasses.replace(weighed(text, 0.03), steps=(0, None)),
    )


def weighed(corpus: Corpus, weight: float) -> Corpus:
    """The corpus with another share of the batches."""
    return dataclasses.replace(corpus, source=dataclasses.replace(corpus.source, weight=weight))
