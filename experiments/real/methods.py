"""Every method on a real model, in short runs: all with the same data, asked the same questions.

    python experiments/real/prepare.py --data DATA
    python experiments/side_by_side.py experiments/real/methods.py --at-once 12   # one GPU
    lorage compare experiments/real/methods.py --no-costs \
        --json experiments/results/real/methods.json --table experiments/results/real/methods.md

SmolLM2-135M-Instruct is the edge and the cloud. The runs are those of `generator.py:gpu`, with a
quarter of the batch and 250 steps instead of 900. The splits are those of `compare.py`:
`instances` are seen tasks in seen wordings with inputs that were not in training, `paraphrases` the
same in wordings that were not, `tasks` are kinds of tasks that were not.

These are the paper's Table 2 without its own tasks (LoRA, LoRAMoE, MixLoRA), 4 (AutoCompressors), 7
(solved samples) and 9 (direct generation), and prompt tuning and a generator without a language
model from the replies. LoRAMoE and MixLoRA read the prompt, as in the paper; LoRA is asked both
ways. Texts are packed into rows, but for methods that put something in front of a row, or make a
LoRA for it. `lorahub` would need a LoRA for each of 103 tasks, and `few_case` a run per prompt.
"""

import dataclasses
from pathlib import Path

import generator as recipe

from lorage_jax.config import CompareConfig, ExperimentConfig, OptimizerConfig, TaskQuestions
from lorage_jax.methods.lora import LoraSettings
from lorage_jax.methods.loramoe import LoraMoeSettings
from lorage_jax.methods.mixlora import MixLoraSettings
from lorage_jax.methods.prompt_tuning import PromptTuningSettings

STEPS = 250
FIGURES = str(Path(__file__).parents[1] / "results" / "real" / "short")  # of these rows
VECTORS = OptimizerConfig(3e-1, betas=(0.9, 0.95), warmup_steps=20, weight_decay=0.0)


def short_run() -> ExperimentConfig:
    """The run of every method, and of every row of `switches.py`."""
    base = recipe.config("gpu")
    return dataclasses.replace(
        base,
        out="runs/real/short",
        data=dataclasses.replace(base.data, prompts_per_batch=32, packed_rows=8),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=20),
        steps=STEPS,
        save_every=STEPS,
    )


def questions() -> TaskQuestions:
    """The same for every row, of these two files."""
    return TaskQuestions(
        str(recipe.DATA / "instructions.jsonl"),
        held_out=recipe.HELD_OUT,
        prompts=40,
        queries=12,
        longest_answer=24,
    )


def config() -> CompareConfig:
    base = short_run()
    whole = {"data": dataclasses.replace(base.data, packed_rows=None)}  # a row per text
    return CompareConfig(
        base=base,
        methods={
            "bare": {},
            "in_context": {},
            **{f"in_context_{n}": {"method": "in_context", "samples": n} for n in (1, 3, 5)},
            "lora_gen": {},
            "direct": whole,
            "no_llm": whole,
            "lora": {"settings": LoraSettings()},
            "lora_in_context": {"method": "lora", "settings": LoraSettings(prompt="in_context")},
            "loramoe": {"settings": LoraMoeSettings(dropout=0.0)},
            "mixlora": {"settings": MixLoraSettings(dropout=0.0)},
            "prompt_tuning": {"optimizer": VECTORS, "settings": PromptTuningSettings(vectors=16)},
            "prefix_tuning": {},
            "autocompressor": whole,
            "gist": whole,
        },
        questions=questions(),
        figures=FIGURES,
    )
