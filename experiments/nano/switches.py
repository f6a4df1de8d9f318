"""Trains one generator per switch of the paper, with all other settings those of the nano pair.

    python experiments/nano/switches.py             # all rows -> results/nano_switches.json and .md
    python experiments/nano/switches.py "top_k 1"   # these rows only

Hardware: two CPU cores. Wall time: 6 minutes per row, 1.5 hours in all; seconds if all rows are
measured. Expected result: experiments/results/nano_switches.md.

These are short runs on word tasks alone. `default` is such a run without a change, with which the
other rows compare. Since these rows select settings, they are scored on other prompts than the
table's (but `composition` has the same fixed list of tasks). Each row is a file in
results/nano_switches, and several processes may measure different rows.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import generator as recipe
import table

from lorage_jax.config import ExperimentConfig
from lorage_jax.evaluate.results import by_arm
from lorage_jax.files.outputs import write_file
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.load import load_model
from lorage_jax.methods.training import train
from lorage_jax.world.samples import draw_world
from lorage_jax.world.scores import generator_arms

STEPS = 250
PROMPTS, QUERIES, SELECTION = 60, 4, 7
SEED = 0

SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "combine factors": {"combine": "factors"},
    "top_k 1": {"top_k": 1},
    "top_k 2": {"top_k": 2},
    "top_k 8": {"top_k": 8},
    "pool shared": {"pool_scope": "shared"},
    "router shared": {"router_scope": "shared"},
    "experts 4": {"experts": 4},
    "experts 4, top_k 2": {"experts": 4, "top_k": 2},
    "experts 12": {"experts": 12},
    "cv_weight 0": {"cv_weight": 0.0},
    "cv_weight 0.005": {"cv_weight": 0.005},
    "cv_weight 0.1": {"cv_weight": 0.1},
    "gumbel": {"routing": "gumbel"},
    "no BatchNorm": {"batch_norm": False},
    "no cloud adapters": {"cloud_rank": 0},
    "rank 4": {"rank": 4, "alpha": 4.0},
    "rank 8": {"rank": 8, "alpha": 8.0},
}
COLUMNS = ("words/train", "words/paraphrase", "words/composition", "words/samples")


def experiment(name: str) -> ExperimentConfig:
    """The short run under one switch."""
    base = recipe.config("both", SEED)
    words = tuple(s for s in base.data.sources if s.name == "words")
    return dataclasses.replace(
        base,
        init="",
        out=str(recipe.RUNS / "switches" / file_name(name)),
        data=dataclasses.replace(base.data, sources=words),
        generator=dataclasses.replace(base.generator, **SWITCHES[name]),
        steps=STEPS,
    )


def file_name(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def measure(run: ExperimentConfig) -> dict[str, Any]:
    """Exact match per split of LoRA-Gen and the shuffled control; trains the run if needed."""
    generator = load_generator(train(run, resume=True).folder)
    samples = draw_world(PROMPTS, QUERIES, SELECTION, families=("words",))
    edge = load_model(run.edge, "float32")
    arms = generator_arms(generator, edge, samples, seed=SEED, arms=("lora_gen", "shuffled"))
    return {
        split: {
            arm: {"mean": found.exact_match, "stderr": found.stderr}
            for arm, found in arms[split].arms.items()
        }
        for split in COLUMNS
    }


def markdown(rows: dict[str, Any]) -> str:
    base = recipe.config("both", SEED).generator
    names = ("experts", "top_k", "combine", "pool_scope", "router_scope", "routing", "batch_norm")
    names += ("cloud_rank", "rank", "cv_weight")
    settings = ", ".join(f"{name} {getattr(base, name)}" for name in names)
    lines = [
        f"# Switches ({STEPS} steps, words, {PROMPTS} prompts x {QUERIES} per split, seed {SEED})",
        "",
        "Exact match of the specialised edge without prompt ± standard error over prompts. Each "
        "row has one seed, so the errors do not include the variation between seeds.",
        "",
        f"`default` is the nano pair's generator: {settings}.",
        "",
        "| switch | " + " | ".join(COLUMNS) + " | shuffled, composition |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for name, row in rows.items():
        cells = [
            f"{one['mean']:.3f} ± {one['stderr']:.3f}"
            for one in (row[split]["lora_gen"] for split in COLUMNS)
        ]
        control = row["words/composition"]["shuffled"]["mean"]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {control:.3f} |")
    return "\n".join(lines) + "\n"


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(SWITCHES):
        raise SystemExit(f"no row {', '.join(unknown)}; expected any of {', '.join(SWITCHES)}.")
    rows = {}
    for name in names or SWITCHES:
        run = experiment(name)
        what = table.identity(run, prompts=PROMPTS, queries=QUERIES, seed=SELECTION)
        path = table.RESULTS / "nano_switches" / f"{file_name(name)}.json"
        found = table.measured(path, what, partial(measure, run))
        rows[name] = {split: by_arm(arms) for split, arms in found.items()}
    if not names:
        found = {"rows": rows, "provenance": table.origin()}
        path = table.RESULTS / "nano_switches.json"
        write_file(path, json.dumps(found, indent=1) + "\n", overwrite=True)
        write_file(path.with_suffix(".md"), markdown(rows), overwrite=True)
    print(markdown(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
