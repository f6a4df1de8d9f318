"""The third part of the nano cloud's training: the objects of the tools, then more tool calls.

    lorage pretrain experiments/nano_cloud_tools.py     # where this begins
    lorage pretrain experiments/nano_cloud_tools2.py    # runs/nano_cloud_tools2/model

After the second part the cloud writes calls in the prompt's dialect, but of any object: the
embeddings of all objects are still one (mean cosine 0.98), as all are equally likely in a call.
Copying them in easy tasks tells them apart.
"""

import dataclasses

import cloud_tools

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig, Source


def config() -> PretrainConfig:
    before = cloud_tools.config()
    objects = Source("synthetic", "synthetic", name="objects", weight=1.0)
    easy = Corpus(objects, documents=15, rows=8, row_tokens=192, queries=3, steps=(0, 600))
    return dataclasses.replace(
        before,
        out="runs/nano_cloud_tools2",
        init="runs/nano_cloud_tools/model",
        corpora=(easy, *before.corpora),
        steps=1800,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=4,
    )
