"""Another edge: Gemma 3 270M under Qwen2.5-Coder-0.5B-Instruct, trained as in `clouds.py`.

    python experiments/side_by_side.py experiments/real/gemma.py --at-once 2 --pin
    lorage compare experiments/real/gemma.py --no-costs \
        --json experiments/results/real/gemma.json --table experiments/results/real/gemma.md

Hardware: two CPU cores, 30 seconds a step on one of them. The learning rate is a third of that of
`clouds.py`, under which this edge's loss rose from 3.5 after 20 steps to 5.8 after 30.
"""

import dataclasses

import clouds

from lorage_jax.config import CompareConfig
from lorage_jax.methods.lora import LoraSettings


def config() -> CompareConfig:
    base = clouds.small_run(clouds.QWEN, clouds.GEMMA, "runs/real/gemma")
    slower = dataclasses.replace(base.optimizer, learning_rate=1e-3)
    return CompareConfig(
        base=dataclasses.replace(base, optimizer=slower),
        methods={
            "bare": {},
            "in_context": {},
            "lora": {"settings": LoraSettings()},
            "lora_gen": {},
        },
        questions=clouds.questions(),
        figures=str(clouds.FIGURES / "gemma"),
    )
