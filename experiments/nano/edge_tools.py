"""The second half of the nano edge's training: tool calls most of the time.

lorage pretrain experiments/nano_edge.py          # runs/nano_edge/model, where this begins
lorage pretrain experiments/nano_edge_tools.py    # runs/nano_edge_tools/model
"""

import dataclasses

import edge

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig, Source


def corpora() -> tuple[Corpus, ...]:
    """Words and prose so that they are not forgotten."""
    _, words, _, text = edge.corpora()
    tools = Source("synthetic", "synthetic", name="tools", weight=0.65)
    keep = [
        dataclasses.replace(corpus, source=dataclasses.replace(corpus.source, weight=weight))
        for corpus, weight in ((words, 0.32), (text, 0.03))
    ]
    tool_calls = Corpus(tools, documents=4, rows=4, row_tokens=640, queries=5)
    return (tool_calls, *(dataclasses.replace(corpus, steps=(0, None)) for corpus in keep))


def config() -> PretrainConfig:
    return dataclasses.replace(
        edge.config(),
        out="runs/nano_edge_tools",
        init="runs/nano_edge/model",
        corpora=corpora(),
        steps=3000,
        optimizer=OptimizerConfig(1.5e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=2,
    )
