"""The last part of the nano cloud's training: words and tool calls in equal shares.

lorage pretrain experiments/nano_cloud_tools2.py    # where this begins
lorage pretrain experiments/nano_cloud_tools3.py    # runs/nano_cloud_tools3/model
"""

import dataclasses

import cloud_tools2

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig

SHARES = {"tools": 0.5, "words": 0.45, "": 0.05}  # "": prose


def weighed(corpus: Corpus) -> Corpus:
    source = corpus.source
    return dataclasses.replace(
        corpus, source=dataclasses.replace(source, weight=SHARES[source.name or ""])
    )


def config() -> PretrainConfig:
    before = cloud_tools2.config()
    _, *corpora = before.corpora
    return dataclasses.replace(
        before,
        out="runs/nano_cloud_tools3",
        init="runs/nano_cloud_tools2/model",
        corpora=tuple(map(weighed, corpora)),
        steps=1500,
        optimizer=OptimizerConfig(1.5e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=5,
    )
