"""The nano pair: how its generator is trained, and the table of what it can do.

    lorage pretrain experiments/nano_edge.py      # then nano_edge_tools.py
    lorage pretrain experiments/nano_cloud.py     # then nano_cloud_tools.py, nano_cloud_tools2.py
    lorage train experiments/nano.py              # runs/nano/seed0/generator
    python experiments/nano.py                    # three seeds, all methods: results/nano.*

The last command trains what is missing (generators of three seeds, a LoRA without prompts for
each), and goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

from lorage_jax.baselines.multitask_lora import load_lora, train_lora
from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, OptimizerConfig, Source
from lorage_jax.evaluate.world import draw_world, evaluate_world
from lorage_jax.evaluate.world_table import to_markdown
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.folder import write_file
from lorage_jax.hf.load import load_model
from lorage_jax.provenance import provenance
from lorage_jax.train.loop import train

SEEDS = (0, 1, 2)
RUNS = Path("runs/nano")
RESULTS = Path(__file__).parent / "results"
PROMPTS, QUERIES = 64, 4  # of every split, seed EVALUATION
EVALUATION = 2026


def config(seed: int = 0) -> ExperimentConfig:
    return ExperimentConfig(
        cloud="runs/nano_cloud_tools2/model",
        edge="runs/nano_edge_tools/model",
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
        steps=800,
        dtype="float32",
        remat="none",
        seed=seed,
        save_every=250,
        log_every=25,
    )


def trained(folder: Path, result: str) -> bool:
    return (folder / result / "lorage.json").is_file()


def main() -> None:
    generators, loras = [], []
    for seed in SEEDS:
        experiment = config(seed)
        out = Path(experiment.out)
        if not trained(out, "generator"):
            train(experiment, resume=True)
        generators.append(load_generator(out / "generator"))
    edge, cloud = load_model(experiment.edge, "float32"), generators[0].cloud
    for seed in SEEDS:
        out = RUNS / f"lora{seed}"
        if not trained(out, "lora"):
            experiment = dataclasses.replace(config(seed), out=str(out))
            train_lora(experiment, resume=True)
        loras.append(load_lora(out / "lora", edge))
    began = time.time()
    samples = draw_world(PROMPTS, QUERIES, EVALUATION)
    table = evaluate_world(samples, edge, cloud, generators, loras=loras)
    table |= {"seconds": time.time() - began, "provenance": provenance(["python", *sys.argv])}
    write_file(RESULTS / "nano.json", json.dumps(table, indent=1) + "\n", overwrite=True)
    write_file(RESULTS / "nano.md", to_markdown(table), overwrite=True)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
