"""The third part of the nano cloud's training: prompts count as much as answers.

    lorage pretrain experiments/nano_cloud_tools.py     # where this begins
    lorage pretrain experiments/nano_cloud_tools2.py    # runs/nano_cloud_tools2/model

After the second part the cloud writes calls in the prompt's dialect, but of any object: to it all
objects are one. What prompts say of each tool, right behind its name, tells them apart.
"""

import dataclasses

import nano_cloud_tools

from lorage_jax.config import OptimizerConfig, PretrainConfig


def config() -> PretrainConfig:
    return dataclasses.replace(
        nano_cloud_tools.config(),
        out="runs/nano_cloud_tools2",
        init="runs/nano_cloud_tools/model",
        prompt_weight=1.0,
        steps=1500,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        seed=4,
    )
