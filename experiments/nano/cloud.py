"""Pretrains the cloud of the nano pair: llama, 7 layers, 2.1 M parameters, its own tokenizer.

    lorage pretrain experiments/nano/cloud.py           # 5000 steps -> runs/nano_cloud/model
    lorage pretrain experiments/nano/cloud.py:tools     # 2000 more  -> runs/nano_cloud_tools/model
    lorage pretrain experiments/nano/cloud.py:tools2    # 1800 more  -> runs/nano_cloud_tools2/model
    lorage pretrain experiments/nano/cloud.py:tools3    # 1500 more  -> runs/nano_cloud_tools3/model

Hardware: two CPU cores. Wall time: not recorded; the edge, half as large, takes 1.2 s per step.
Expected result: the cloud with the prompt in context of `experiments/results/nano.md`; curves in
`experiments/results/nano_curves.png`.

The data are the edge's (`edge.py`). After `tools`, the cloud writes calls in the prompt's dialect,
but with arbitrary objects: the embeddings of all objects are nearly equal (mean cosine 0.98),
because all objects are equally likely in a call. `tools2` therefore starts with easy tasks that
copy objects, so that it learns to distinguish them; `tools3` mixes words and tool calls in equal
shares.
"""

import dataclasses

import edge
from stages import stage_of

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig, Source
from lorage_jax.hf.family import family_decoder

STAGES = ("start", "tools", "tools2", "tools3")
OBJECTS = Source("synthetic", "synthetic", name="objects", weight=1.0)
TOOLS3_SHARES = {"tools": 0.5, "words": 0.45, "": 0.05}  # "": prose


def config(stage: str = "start") -> PretrainConfig:
    """The run of one stage, which continues from the model of the stage before."""
    return (start, tools, tools2, tools3)[stage_of(STAGES, stage)]()


def start() -> PretrainConfig:
    """From scratch, on the corpora of the edge's first stage."""
    return PretrainConfig(
        model=family_decoder(
            "llama",
            vocab_size=1792,
            width=160,
            layers=7,
            heads=5,
            kv_heads=5,
            ffn_width=320,
            max_positions=1024,
            tied_head=True,
            bos_id=0,
        ),
        out="runs/nano_cloud",
        corpora=edge.start_corpora(),
        steps=5000,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=100),
        remat="none",
        seed=1,
        save_every=250,
        log_every=50,
    )


def tools() -> PretrainConfig:
    """Mostly tool calls, as in the edge's second stage."""
    second = edge.tools()
    return dataclasses.replace(
        start(),
        out="runs/nano_cloud_tools",
        init="runs/nano_cloud/model",
        corpora=second.corpora,
        steps=2000,
        optimizer=second.optimizer,
        seed=3,
    )


def tools2() -> PretrainConfig:
    """Easy tasks with the objects of the tools, then more tool calls."""
    before = tools()
    easy = Corpus(OBJECTS, documents=15, rows=8, row_tokens=192, queries=3, steps=(0, 600))
    return dataclasses.replace(
        before,
        out="runs/nano_cloud_tools2",
        init="runs/nano_cloud_tools/model",
        corpora=(easy, *before.corpora),
        steps=1800,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=4,
    )


def tools3() -> PretrainConfig:
    """Words and tool calls in equal shares."""
    before = tools2()
    _, *corpora = before.corpora
    shares = (edge.weighed(corpus, TOOLS3_SHARES[corpus.source.name]) for corpus in corpora)
    return dataclasses.replace(
        before,
        out="runs/nano_cloud_tools3",
        init="runs/nano_cloud_tools2/model",
        corpora=tuple(shares),
        steps=1500,
        optimizer=OptimizerConfig(1.5e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=5,
    )
