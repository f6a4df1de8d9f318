"""The paper's TinyLlama-1.1B under LLaMA3-8B, on one host or on every host of a pod.

    lorage train experiments/paper_tinyllama.py
    lorage compile experiments/paper_tinyllama.py --topology v5e:2x4

`paper.py` says where models and data are.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("TinyLlama-1.1B-intermediate-step-1431k-3T")
