"""Trains a generator on your own JSON lines, and asks it beside its control.

    python examples/train_your_own.py [OUT] [STEPS]
    lorage train examples/train_your_own.py             # the training alone

Goes on from the bundled generator with examples/data/train.jsonl: four tasks, each in two wordings.
Then asks test.jsonl, in a third wording, and, as a control, with the card of another task.
"""

import json
import sys
from pathlib import Path

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.config import DataConfig, ExperimentConfig, OptimizerConfig, Source

DATA = Path(__file__).parent / "data"


def config(out: Path = Path("runs/own"), steps: int = 60) -> ExperimentConfig:
    return ExperimentConfig(
        cloud=str(nano.CLOUD),
        edge=str(nano.EDGE),
        init=str(nano.GENERATOR),  # leave it out to begin anew, which takes a thousand steps
        generator=lg.load_generator("nano").config,
        out=str(out),
        data=DataConfig(
            sources=(Source(str(DATA / "train.jsonl")),),
            prompts_per_batch=8,
            queries_per_prompt=4,
            max_prompt_tokens=48,
            max_query_tokens=48,
            min_bucket=48,
        ),
        optimizer=OptimizerConfig(3e-3, "muon", warmup_steps=steps // 10),
        steps=steps,
        dtype="float32",
        remat="none",
    )


def main(out: Path, steps: int) -> dict[str, float]:
    generator = lg.load_generator(lg.train(config(out, steps)).folder)
    edge = generator.speaking(lg.load_model(nano.EDGE))
    rows = [json.loads(line) for line in (DATA / "test.jsonl").read_text("utf-8").splitlines()]
    prompts = list(dict.fromkeys(row["system"] for row in rows))
    cards, scores = lg.specialize(generator, prompts), {}
    for name, shift in {"specialised": 0, "another task's card": 1}.items():
        own = [cards[(prompts.index(row["system"]) + shift) % len(prompts)] for row in rows]
        said = lg.chat(edge, [row["user"] for row in rows], gates=own, max_new_tokens=24)
        right = [a.strip() == row["target"] for a, row in zip(said, rows, strict=True)]
        scores[name] = sum(right) / len(rows)
        print(f"{name:20} {scores[name]:.2f} right, in a wording that training did not have")
    return scores


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(Path(given.get(1, "runs/own")), int(given.get(2, 60)))
