"""Every method on the nano pair, in one table: short runs on word tasks, all with the same data.

    python experiments/nano/loras.py    # for the row `lorahub`, and with --seed 1 and 2
    python experiments/nano/encoder.py  # for the row `no_llm_sentence`
    lorage compare experiments/nano/compare.py --seeds 3
    lorage compare experiments/nano/compare.py --methods lora_gen,lora --limit 8

Hardware: two CPU cores. Wall time: about 6 minutes per trained method and seed, and half an hour
for MixLoRA, which computes all its FFNs; `python experiments/side_by_side.py` with this file runs
two at once. Runs are kept in runs/nano/compare, figures in experiments/results/nano_short, and
what is there is not made again.

One method is no row: `lora_per_task` would need a LoRA for each of 841 tasks to be more than the
bare edge here; `lorahub` combines 20 of them. `few_case`, a run per prompt, is asked as
`tuned_cards`.

The runs are those of `switches.py`: 250 steps on word tasks alone. Methods differ in what they
train, so each has a learning rate of its own kind; none has dropout. `in_context_3` has three
solved samples after every prompt. LoRAMoE and MixLoRA read the prompt, as in the paper, and so do
DoRA and VeRA; LoRA is asked both ways.
"""

import dataclasses
from pathlib import Path

import generator as recipe

from lorage_jax.config import CompareConfig, OptimizerConfig, WorldQuestions
from lorage_jax.methods.lora import LoraSettings
from lorage_jax.methods.lora_gen import LoraGenSettings
from lorage_jax.methods.loramoe import LoraMoeSettings
from lorage_jax.methods.mixlora import MixLoraSettings
from lorage_jax.methods.no_llm import NoLlmSettings
from lorage_jax.methods.prompt_tuning import PromptTuningSettings
from lorage_jax.methods.tuned_cards import TuningSettings

STEPS = 250
ENCODER = recipe.RUNS / "encoder"
FIGURES = str(Path(__file__).parents[1] / "results" / "nano_short")  # also of `switches.py`
LORA = OptimizerConfig(3e-3, "muon", betas=(0.9, 0.95), warmup_steps=20)
VERA = OptimizerConfig(3e-2, betas=(0.9, 0.95), warmup_steps=20, weight_decay=0.0)
VECTORS = OptimizerConfig(3e-1, betas=(0.9, 0.95), warmup_steps=20, weight_decay=0.0)


def config() -> CompareConfig:
    begin = recipe.config("both")
    words = tuple(source for source in begin.data.sources if source.name == "words")
    base = dataclasses.replace(
        begin,
        init="",
        out=str(recipe.RUNS / "compare"),
        data=dataclasses.replace(begin.data, sources=words),
        steps=STEPS,
        save_every=STEPS,
    )
    tuned = {"after": "lora_gen", "samples": 5}
    return CompareConfig(
        base=base,
        methods={
            "bare": {},
            "in_context": {},
            **{f"in_context_{n}": {"method": "in_context", "samples": n} for n in (1, 3, 5)},
            "in_context_cached": {},
            "lora_gen": {},
            "lora_gen_distilled": {"method": "lora_gen", "settings": LoraGenSettings(0.5)},
            "gumbel": {
                "method": "lora_gen",
                "generator": dataclasses.replace(base.generator, routing="gumbel"),
            },
            "direct": {},
            "no_llm": {},
            "no_llm_sentence": {
                "method": "no_llm",
                "settings": NoLlmSettings("sentence", str(ENCODER)),
            },
            "lora": {"optimizer": LORA, "settings": LoraSettings()},
            "lora_in_context": {
                "method": "lora",
                "optimizer": LORA,
                "settings": LoraSettings(prompt="in_context"),
            },
            "dora": {
                "method": "lora",
                "optimizer": LORA,
                "settings": LoraSettings("dora", prompt="in_context"),
            },
            "vera": {
                "method": "lora",
                "optimizer": VERA,
                "settings": LoraSettings("vera", prompt="in_context"),
            },
            "loramoe": {"optimizer": LORA, "settings": LoraMoeSettings(dropout=0.0)},
            "mixlora": {"optimizer": LORA, "settings": MixLoraSettings(dropout=0.0)},
            "prompt_tuning": {
                "optimizer": VECTORS,
                "settings": PromptTuningSettings(vectors=16),
            },
            "prefix_tuning": {"optimizer": LORA},
            "autocompressor": {"optimizer": LORA},
            "gist": {"optimizer": LORA},
            "tuned_cards": {**tuned, "learning": TuningSettings(learning_rate=1e-3)},
            "tuned_fresh": {**tuned, "learning": TuningSettings(learning_rate=3e-3)},
            "lorahub": {"trained": str(recipe.RUNS / "loras-{seed}"), "samples": 5},
        },
        questions=WorldQuestions(prompts=60, queries=4, families=("words",), seed=7),
        figures=FIGURES,
    )
