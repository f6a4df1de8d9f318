"""The paper's Gemma-2B under LLaMA3-8B, on one host or on every host of a pod.

    lorage train experiments/paper_gemma.py
    lorage compile experiments/paper_gemma.py --topology v5e:2x4

`paper.py` says where models and data are.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("gemma-2-2b")
