"""Another edge: Gemma 3 270M under Qwen2.5-Coder-0.5B-Instruct, trained as in `clouds.py`.

    python experiments/side_by_side.py experiments/real/gemma.py --at-once 2 --pin
    lorage compare experiments/real/gemma.py --no-costs --methods bare,in_context,lora_gen \
        --json experiments/results/real/gemma.json --table experiments/results/real/gemma.md

Hardware: two CPU cores. Wall time on one of them: 45 minutes for the training, 20 for the
questions with their controls. The learning rate is a third of that of `clouds.py`, under which this
edge's loss rose from 3.5 after 20 steps to 5.8 after 30. Result: exact match of 0.25 on seen tasks
in seen and in unseen wordings, 0.10 and 0.05 under another task's card. `lora` was not run.
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
