"""The second half of the nano cloud's training: tool calls most of the time.

lorage pretrain experiments/nano_cloud.py          # runs/nano_cloud/model, where this begins
lorage pretrain experiments/nano_cloud_tools.py    # runs/nano_cloud_tools/model
"""

import dataclasses

import cloud
import edge_tools

from lorage_jax.config import PretrainConfig


def config() -> PretrainConfig:
    second = edge_tools.config()
    return dataclasses.replace(
        cloud.config(),
        out="runs/nano_cloud_tools",
        init="runs/nano_cloud/model",
        corpora=second.corpora,
        steps=2000,
        optimizer=second.optimizer,
        seed=3,
    )
