"""The paper's TinyLlama-1.1B under LLaMA3-8B, on one host or on every host of a pod.

    lorage train experiments/paper/tinyllama.py
    lorage compile experiments/paper/tinyllama.py --topology v5e:2x4

Hardware: one TPU host of eight v5e chips or more. Wall time: not measured; the compiler estimates
at least 0.78 s per typical step there, and 10.0 GiB per chip. Expected result: the paper's Table 2
for TinyLlama-1.1B.

`recipe.py` says where models and data must be.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("TinyLlama-1.1B-intermediate-step-1431k-3T")
