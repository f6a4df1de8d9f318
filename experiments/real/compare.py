"""The bundled generator beside the edge with its prompt in context, on tasks of four collections.

    python experiments/real/prepare.py --data DATA
    lorage compare experiments/real/compare.py --json experiments/results/real/compare.json \
        --table experiments/results/real/compare.md

Hardware: one CPU core. Wall time: 30 minutes. Result: exact match of 0.45 on seen tasks in seen
wordings, 0.58 in unseen ones and 0.11 on unseen kinds; another task's card at most 0.17, prompt
and five samples in context at most 0.13. `instances` are seen tasks in seen wordings with
inputs that were not in training, `paraphrases` the same in wordings that were not, `tasks` are
kinds of tasks that were not. Finished parts are kept in runs/real/compare.
"""

import dataclasses

import generator as recipe

from lorage_jax.config import CompareConfig, TaskQuestions


def config() -> CompareConfig:
    base = recipe.config("gpu")
    return CompareConfig(
        base=dataclasses.replace(base, out="runs/real/compare", dtype="float32"),
        methods={
            "bare": {},
            "in_context": {},
            "in_context_5": {"method": "in_context", "samples": 5},
            "lora_gen": {"trained": "smollm2"},
            "lora_gen_5": {"method": "lora_gen", "trained": "smollm2", "samples": 5},
        },
        questions=TaskQuestions(
            str(recipe.DATA / "instructions.jsonl"),
            held_out=recipe.HELD_OUT,
            prompts=24,
            queries=8,
            longest_answer=24,
        ),
    )
