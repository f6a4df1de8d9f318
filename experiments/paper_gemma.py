"""The paper\'s generator for Gemma-2-2B, cloud LLaMA3-8B. `paper.py` says where models and data are.

lorage train experiments/paper_gemma.py
lorage compile experiments/paper_gemma.py --topology v5e:2x4
"""

from paper import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("gemma-2-2b")
