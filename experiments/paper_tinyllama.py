"""The paper\'s generator for TinyLlama-1.1B, cloud LLaMA3-8B. `paper.py` says where models and data are.

lorage train experiments/paper_tinyllama.py
lorage compile experiments/paper_tinyllama.py --topology v5e:2x4
"""

from paper import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("TinyLlama-1.1B-intermediate-step-1431k-3T")
