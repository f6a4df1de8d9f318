"""The paper\'s generator for Qwen2-1.5B, cloud LLaMA3-8B. `paper.py` says where models and data are.

lorage train experiments/paper_qwen.py
lorage compile experiments/paper_qwen.py --topology v5e:2x4
"""

from paper import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("Qwen2-1.5B")
