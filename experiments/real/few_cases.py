"""Five solved samples of an unseen kind of task: read, or learnt from (the replies' Table 12).

    python experiments/real/prepare.py --data DATA
    python experiments/side_by_side.py experiments/real/few_cases.py --at-once 2 --pin
    lorage compare experiments/real/few_cases.py --no-costs \
        --json experiments/results/real/few_cases.json --table experiments/results/real/few_cases.md

Hardware: two CPU cores, one for each process. Wall time: an hour beside other work.
The generator is the bundled one, and nothing is trained but the cards. `in_context_5` and
`lora_gen_5` read the samples after the prompt; `tuned_cards` fits the prompt's card to them, and
`tuned_fresh`, its control, a fresh LoRA. Their learning rates, now the defaults, were chosen on
four seen tasks: of 1e-3 and 3e-4 for cards, of 3e-3 and 1e-3 for fresh LoRAs. Result: both 0.507
(standard errors 0.08 and 0.07), read in context 0.125, the untrained card 0.111.
"""

import dataclasses

import clouds
import generator as recipe

from lorage_jax.config import CompareConfig

BUNDLED = {"trained": "smollm2"}


def config() -> CompareConfig:
    base = recipe.config("gpu")
    samples = {"samples": 5}
    return CompareConfig(
        base=dataclasses.replace(base, out="runs/real/few_cases", dtype="float32"),
        methods={
            "bare": {},
            "in_context": {},
            "in_context_5": {"method": "in_context", **samples},
            "lora_gen": BUNDLED,
            "lora_gen_5": {"method": "lora_gen", **BUNDLED, **samples},
            "tuned_cards": {**BUNDLED, **samples},
            "tuned_fresh": {**BUNDLED, **samples},
        },
        questions=dataclasses.replace(clouds.questions(), splits=("tasks",)),
        figures=str(clouds.FIGURES / "few_cases"),
    )
