"""Another edge: Gemma 3 270M under Qwen2.5-Coder-0.5B-Instruct, trained as in `clouds.py`.

    python experiments/side_by_side.py experiments/real/gemma.py --at-once 2 --pin
    lorage compare experiments/real/gemma.py --no-costs \
        --json experiments/results/real/gemma.json --table experiments/results/real/gemma.md

Hardware: two CPU cores, about 50 seconds a step on one of them beside other work. Not finished yet:
the loss was 3.5 after 20 of 80 steps.
"""

import clouds

from lorage_jax.config import CompareConfig
from lorage_jax.methods.lora import LoraSettings


def config() -> CompareConfig:
    return CompareConfig(
        base=clouds.small_run(clouds.QWEN, clouds.GEMMA, "runs/real/gemma"),
        methods={
            "bare": {},
            "in_context": {},
            "lora": {"settings": LoraSettings()},
            "lora_gen": {},
        },
        questions=clouds.questions(),
        figures=str(clouds.FIGURES / "gemma"),
    )
