"""The paper's Gemma-2B under LLaMA3-8B, on one host or on every host of a pod.

    lorage train experiments/paper/gemma.py
    lorage compile experiments/paper/gemma.py --topology v5e:2x4

Hardware: one TPU host of eight v5e chips or more. Wall time: not measured; the compiler estimates
at least 0.91 s per typical step there, and 12.1 GiB per chip. Expected result: the paper's Table 2
for Gemma-2B.

`recipe.py` says where models and data must be.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("gemma-2-2b")
