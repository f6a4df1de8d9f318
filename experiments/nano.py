"""The nano pair: how its generator is trained, and the table of what it can do.

    lorage train experiments/nano.py              # runs/nano/seed0/generator
    python experiments/nano.py                    # three seeds, all methods: results/nano.*
    python experiments/nano.py seed1 lora1        # these parts of it only

The pair is the bundled one; lorage_jax/nano/README.md says how it was made. The table is put
together from parts, a file each in results/nano: `base` (methods without training), `seed*` (a
generator), `lora*` (a LoRA without prompts), `time`. A part that has no file yet is trained and
measured; so the command goes on where it was interrupted, and parts may come from several
processes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorage_jax.baselines.multitask_lora import load_lora, train_lora
from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, OptimizerConfig, Source
from lorage_jax.evaluate.world import (
    WorldSample,
    base_arms,
    draw_world,
    generator_arms,
    lora_arm,
    request_seconds,
)
from lorage_jax.evaluate.world_table import combine, to_markdown
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.folder import write_file
from lorage_jax.hf.load import load_model
from lorage_jax.models.model import Model
from lorage_jax.provenance import provenance
from lorage_jax.train.loop import train

CLOUD, EDGE = "lorage_jax/nano/cloud", "lorage_jax/nano/edge"
SEEDS = (0, 1, 2)
RUNS = Path("runs/nano")
RESULTS = Path(__file__).parent / "results"
PROMPTS, QUERIES = 64, 4  # of every split, seed EVALUATION
EVALUATION = 2026


def config(seed: int = 0) -> ExperimentConfig:
    return ExperimentConfig(
        cloud=CLOUD,
        edge=EDGE,
        out=str(RUNS / f"seed{seed}"),
        data=DataConfig(
            sources=(
                Source("synthetic", "synthetic", name="words", weight=3),
                Source("synthetic", "synthetic", name="tools", weight=1),
            ),
            prompts_per_batch=16,
            queries_per_prompt=4,
            max_prompt_tokens=384,
            max_query_tokens=96,
            prompt_chunks=4,
            min_bucket=64,  # few shapes, so few programs to compile
        ),
        generator=GeneratorConfig(top_k=4, dropout=0.0),
        optimizer=OptimizerConfig(4e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        steps=1000,
        dtype="float32",
        remat="none",
        seed=seed,
        save_every=250,
        log_every=25,
    )


def trained(folder: Path, result: str) -> bool:
    return (folder / result / "lorage.json").is_file()


def generator(seed: int) -> Generator:
    out = Path(config(seed).out)
    if not trained(out, "generator"):
        train(config(seed), resume=True)
    return load_generator(out / "generator")


def lora(seed: int, edge: Model) -> Model:
    out = RUNS / f"lora{seed}"
    if not trained(out, "lora"):
        train_lora(dataclasses.replace(config(seed), out=str(out)), resume=True)
    return load_lora(out / "lora", edge)


def parts() -> dict[str, Callable[[Model, Sequence[WorldSample]], dict[str, Any]]]:
    """Of each part, what trains and measures it."""
    found = {"base": lambda edge, samples: base_arms(edge, load_model(CLOUD, "float32"), samples)}
    for seed in SEEDS:
        found[f"seed{seed}"] = lambda edge, samples, seed=seed: generator_arms(
            generator(seed), edge, samples, seed=seed
        )
        found[f"lora{seed}"] = lambda edge, samples, seed=seed: lora_arm(lora(seed, edge), samples)
    found["time"] = lambda edge, samples: request_seconds(edge, generator(0), samples)
    return found


def measure(name: str, edge: Model, cloud: str, samples: Sequence[WorldSample]) -> dict[str, Any]:
    """The part's result: from its file, or made and written there."""
    path, models = RESULTS / "nano" / f"{name}.json", {"edge": edge.fingerprint, "cloud": cloud}
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        if found["models"] != models:
            raise SystemExit(f"{path} is of another pair; move it away to measure this one.")
        return found["result"]
    began, result = time.time(), parts()[name](edge, samples)
    found = {
        "models": models,
        "result": result,
        "seconds": time.time() - began,
        "provenance": provenance(["python", "experiments/nano.py", name]),
    }
    path.parent.mkdir(exist_ok=True)
    write_file(path, json.dumps(found) + "\n", overwrite=True)
    return result


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(parts()):
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(parts())}.")
    edge, cloud = load_model(EDGE, "float32"), load_model(CLOUD).fingerprint
    samples = draw_world(PROMPTS, QUERIES, EVALUATION)
    found = {name: measure(name, edge, cloud, samples) for name in names or parts()}
    if names:
        return
    table = combine(
        [found[f"seed{seed}"] for seed in SEEDS],
        found["base"],
        [found[f"lora{seed}"] for seed in SEEDS],
        found["time"],
    )
    table["provenance"] = provenance(["python", "experiments/nano.py"])
    write_file(RESULTS / "nano.json", json.dumps(table, indent=1) + "\n", overwrite=True)
    write_file(RESULTS / "nano.md", to_markdown(table), overwrite=True)
    print(to_markdown(table))


if __name__ == "__main__":
    main(sys.argv[1:])
