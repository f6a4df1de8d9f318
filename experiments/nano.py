"""The nano pair: how its generator is trained, and the table of what it can do.

    lorage train experiments/nano.py              # runs/nano/seed0/generator
    python experiments/nano.py                    # three seeds, all methods: results/nano.*
    python experiments/nano.py seed1 lora1        # these parts of it only

The pair is the bundled one; lorage_jax/nano/README.md says how it was made. The table is put
together from parts, a file each in results/nano: `base` (methods without training), `seed*` (a
generator), `lora*` (a LoRA without prompts), `time`. A part that has no file yet is trained and
measured; so the command goes on where it was interrupted, and parts may come from several
processes. A file that was measured with other weights, data or settings is not taken.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nano_goals import goals, goals_markdown

from lorage_jax import nano
from lorage_jax.baselines.multitask_lora import load_lora, train_lora
from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, OptimizerConfig, Source
from lorage_jax.data import synthetic, tool_calls
from lorage_jax.data.pipeline import data_fingerprint
from lorage_jax.evaluate.world import (
    WorldSample,
    base_arms,
    draw_world,
    generator_arms,
    lora_arm,
    request_seconds,
)
from lorage_jax.evaluate.world_table import combine, to_markdown
from lorage_jax.fields import to_dict
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.folder import write_file
from lorage_jax.hf.load import load_model
from lorage_jax.models.model import Model
from lorage_jax.provenance import provenance
from lorage_jax.train.loop import train

SEEDS = (0, 1, 2)
RUNS = Path("runs/nano")
RESULTS = Path(__file__).parent / "results"
PROMPTS, QUERIES = 64, 4  # of every split, seed EVALUATION
EVALUATION = 2026


def config(seed: int = 0) -> ExperimentConfig:
    return ExperimentConfig(
        cloud=str(nano.CLOUD),
        edge=str(nano.EDGE),
        out=str(RUNS / f"seed{seed}"),
        data=DataConfig(
            sources=(
                Source("synthetic", "synthetic", name="words"),
                Source("synthetic", "synthetic", name="tools"),
            ),
            prompts_per_batch=16,
            queries_per_prompt=4,
            max_prompt_tokens=384,
            max_query_tokens=112,
            prompt_chunks=2,  # words, then tools, which are longer
            min_bucket=48,  # few shapes, so few programs to compile
        ),
        generator=GeneratorConfig(
            top_k=4, combine="products", router_scope="per_layer", dropout=0.0
        ),
        optimizer=OptimizerConfig(4e-3, "muon", betas=(0.9, 0.95), warmup_steps=50),
        steps=900,
        dtype="float32",
        remat="none",
        seed=seed,
        save_every=250,
        log_every=25,
    )


def generator(seed: int) -> Generator:
    """Trained, if it is not yet."""
    return load_generator(train(config(seed), resume=True).folder)


def lora(seed: int, edge: Model) -> Model:
    """The edge with a LoRA for all tasks, trained without prompts if it is not yet."""
    run = dataclasses.replace(config(seed), out=str(RUNS / f"lora{seed}"))
    return load_lora(train_lora(run, resume=True).folder, edge)


def parts() -> dict[str, Callable[[Model, Sequence[WorldSample]], dict[str, Any]]]:
    """Of each part, what trains and measures it."""
    found = {
        "base": lambda edge, samples: base_arms(edge, load_model(nano.CLOUD, "float32"), samples)
    }
    for seed in SEEDS:
        found[f"seed{seed}"] = lambda edge, samples, seed=seed: generator_arms(
            generator(seed), edge, samples, seed=seed
        )
        found[f"lora{seed}"] = lambda edge, samples, seed=seed: lora_arm(lora(seed, edge), samples)
    found["time"] = lambda edge, samples: request_seconds(edge, generator(0), samples)
    return found


def identity(run: ExperimentConfig, *, trained: bool = True, **drawn: int) -> dict[str, Any]:
    """All on which a result depends: weights, what was drawn to measure it, how it was trained."""
    models = {
        "cloud": load_model(run.cloud).fingerprint,
        "edge": load_model(run.edge).fingerprint,
    }
    settings = to_dict(run)
    for name in ("out", "cloud", "edge"):  # where things are
        del settings[name]
    training = {"data": data_fingerprint(run.data.sources), "experiment": settings}
    world = {"version": [synthetic.VERSION, tool_calls.VERSION]}
    return models | (training if trained else {}) | {"drawn": drawn | world}


def measured(path: Path, what: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What the file says of `what`; if there is none, what `make` returns, and now it says so."""
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        if found["identity"] != what:
            other = [key for key in what if found["identity"].get(key) != what[key]]
            raise SystemExit(
                f"{path} was measured with another {', '.join(other)}. Move it away to measure "
                "again, or go back to what it was measured with."
            )
        return found["result"]
    began, result = time.time(), make()
    origin = provenance(["python", *sys.argv])
    text = json.dumps(
        {
            "identity": what,
            "result": result,
            "seconds": time.time() - began,
            "provenance": origin,
        }
    )
    path.parent.mkdir(exist_ok=True)
    write_file(path, text + "\n", overwrite=True)
    return result


def main(names: Sequence[str]) -> None:
    if unknown := set(names) - set(parts()):
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(parts())}.")
    edge, samples = load_model(nano.EDGE, "float32"), draw_world(PROMPTS, QUERIES, EVALUATION)
    found = {}
    for name in names or parts():
        seed = int(name[-1]) if name[-1].isdigit() else 0
        what = identity(
            config(seed),
            trained=name != "base",
            prompts=PROMPTS,
            queries=QUERIES,
            seed=EVALUATION,
        )
        path = RESULTS / "nano" / f"{name}.json"
        found[name] = measured(path, what, partial(parts()[name], edge, samples))
    if names:
        return
    table = combine(
        [found[f"seed{seed}"] for seed in SEEDS],
        found["base"],
        [found[f"lora{seed}"] for seed in SEEDS],
        found["time"],
    )
    table |= {"goals": goals(table), "provenance": provenance(["python", *sys.argv])}
    text = to_markdown(table, "The nano pair") + goals_markdown(table["goals"])
    write_file(RESULTS / "nano.json", json.dumps(table, indent=1) + "\n", overwrite=True)
    write_file(RESULTS / "nano.md", text, overwrite=True)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
