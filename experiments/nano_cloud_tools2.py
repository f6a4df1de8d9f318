"""The third part of the nano cloud's training: more tool calls, at a higher learning rate.

    lorage pretrain experiments/nano_cloud_tools.py     # where this begins
    lorage pretrain experiments/nano_cloud_tools2.py    # runs/nano_cloud_tools2/model

After the second part it writes calls in the prompt's dialect, but takes their objects from tools
of the list instead of from the request.
"""

import dataclasses

import nano_cloud_tools

from lorage_jax.config import OptimizerConfig, PretrainConfig


def config() -> PretrainConfig:
    return dataclasses.replace(
        nano_cloud_tools.config(),
        out="runs/nano_cloud_tools2",
        init="runs/nano_cloud_tools/model",
        steps=2200,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=4,
    )
