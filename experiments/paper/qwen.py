"""The paper's Qwen-1.5B under LLaMA3-8B, on one host or on every host of a pod.

    lorage train experiments/paper_qwen.py
    lorage compile experiments/paper_qwen.py --topology v5e:2x4

`paper.py` says where models and data are.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("Qwen2-1.5B")
