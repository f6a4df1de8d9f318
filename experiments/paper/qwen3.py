"""The paper's recipe with Qwen3-1.7B as the edge, under LLaMA3-8B or Qwen3-8B.

    lorage train experiments/paper/qwen3.py
    lorage compile experiments/paper/qwen3.py --topology v5e:2x4
    LORAGE_CLOUD=Qwen3-8B lorage compile experiments/paper/qwen3.py --topology v5e:2x4

Hardware: one TPU host of eight v5e chips or more. Wall time: not measured; memory and the
compiler's estimate of the step: `experiments/results/pod.md`. The paper has no result for it.

`recipe.py` says where models and data must be.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("Qwen3-1.7B")
