"""The paper's OPT-2.7B under LLaMA3-8B, on one host or on every host of a pod.

    lorage train experiments/paper/opt.py
    lorage compile experiments/paper/opt.py --topology v5e:2x4

Hardware: one TPU host of eight v5e chips or more. Wall time: not measured. OPT has no gate
projection: its adapter is on fc1 and fc2. Expected result: the paper's Table 4 for OPT-2.7B.

`recipe.py` says where models and data must be. The Hub has the model as a pickle; save it once as
safetensors: `AutoModelForCausalLM.from_pretrained("facebook/opt-2.7b").save_pretrained(...)`.
"""

from recipe import recipe

from lorage_jax.config import ExperimentConfig


def config() -> ExperimentConfig:
    return recipe("opt-2.7b")
