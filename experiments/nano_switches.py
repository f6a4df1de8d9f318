"""Every switch of the paper on the nano pair: one run each, all else as in `nano.config()`.

    python experiments/nano_switches.py             # results/nano_switches.*; goes on where it was
    python experiments/nano_switches.py "top_k 1"   # these rows of it only

On the words family alone, with fewer steps than the table's generators; the row `default` is the
same short run without a change, so rows compare with it and with each other.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano import EVALUATION, RESULTS, RUNS, config, trained

from lorage_jax.config import ExperimentConfig
from lorage_jax.evaluate.world import draw_world, generator_arms
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.folder import write_file
from lorage_jax.hf.load import load_model
from lorage_jax.provenance import provenance
from lorage_jax.train.loop import train

CLOUD = "runs/nano_cloud_tools/model"  # follows words as well as the bundled one, made before it
STEPS = 400
PROMPTS, QUERIES = 60, 4

SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "combine products": {"combine": "products"},
    "pool shared": {"pool_scope": "shared"},
    "router per_layer": {"router_scope": "per_layer"},
    "experts 4": {"experts": 4},
    "experts 12": {"experts": 12},
    "top_k 1": {"top_k": 1},
    "top_k 2": {"top_k": 2},
    "top_k 8": {"top_k": 8},
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


def experiment(name: str, seed: int) -> ExperimentConfig:
    """The short run under one switch."""
    base = config(seed)
    words = tuple(s for s in base.data.sources if s.name == "words")
    return dataclasses.replace(
        base,
        cloud=CLOUD,
        out=str(RUNS / "switches" / f"{name.replace(' ', '_')}-{seed}"),
        data=dataclasses.replace(base.data, sources=words, prompt_chunks=2),
        generator=dataclasses.replace(base.generator, **SWITCHES[name]),
        steps=STEPS,
    )


def measure(name: str, seed: int) -> dict[str, Any]:
    """Trains if need be; exact match per split, of LoRA-Gen and of the shuffled control."""
    run = experiment(name, seed)
    folder = Path(run.out)
    if not trained(folder, "generator"):
        train(run, resume=True)
    generator = load_generator(folder / "generator")
    samples = draw_world(PROMPTS, QUERIES, EVALUATION, families=("words",))
    edge = load_model(run.edge, "float32")
    arms = generator_arms(generator, edge, samples, seed=seed, arms=("lorage", "shuffled"))
    return {
        split: {
            arm: {"mean": found["exact_match"], "stderr": found["stderr"]}
            for arm, found in arms[split]["methods"].items()
        }
        for split in COLUMNS
    }


def markdown(rows: dict[str, Any]) -> str:
    lines = [
        f"# Switches ({STEPS} steps, words, {PROMPTS} prompts x {QUERIES} a split, seed 0)",
        "",
        "Exact match of the specialised edge without prompt ± standard error over prompts.",
        "",
        "| switch | " + " | ".join(COLUMNS) + " | shuffled, composition |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for name, row in rows.items():
        cells = [
            f"{row[s]['lorage']['mean']:.3f} ± {row[s]['lorage']['stderr']:.3f}" for s in COLUMNS
        ]
        control = row["words/composition"]["shuffled"]["mean"]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {control:.3f} |")
    return "\n".join(lines) + "\n"


def known(path: Path) -> dict[str, Any]:
    """Rows that are in the file, in the order of SWITCHES."""
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else {}
    return {name: rows[name] for name in SWITCHES if name in rows}


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(SWITCHES):
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are {', '.join(SWITCHES)}.")
    path = RESULTS / "nano_switches.json"
    for name in names or SWITCHES:
        if name in known(path):
            continue
        row = {name: measure(name, seed=0)}
        rows = known(path) | row  # read again: another process may have added rows
        origin = provenance(["python", "experiments/nano_switches.py"])
        write_file(
            path, json.dumps({"rows": rows, "provenance": origin}, indent=1) + "\n", overwrite=True
        )
        write_file(RESULTS / "nano_switches.md", markdown(known(path)), overwrite=True)
    print(markdown(known(path)))


if __name__ == "__main__":
    main(sys.argv[1:])
