"""The paper's Qwen-1.5B under LLaMA3-8B, on one host or on every host of a pod.

    lorage train experiments/paper/qwen.py
    lorage compile experiments/paper/qwen.py --topology v5e:2x4

Hardware: one TPU host of eight v5e chips or more. Wall time: not measured; the compiler estimates
at least 0.82 s per typical step there, and 11.0 GiB per chip. Expected result: the paper's Table 2
for Qwen-1.5B.

`recipe.py` says where models and data must be.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("Qwen2-1.5B")
