"""Measures the nano pair: three generators, baselines and controls, in one table.

    python experiments/nano/table.py                # all parts -> results/nano.json and nano.md
    python experiments/nano/table.py seed1 lora1    # these parts only

Hardware: two CPU cores. Wall time: 10 s if all parts are measured; else 7 minutes for `base`, 47
for each `seed*`, 11 for each `lora*`, 1 for `time`. Expected result: experiments/results/nano.md.

The pair is the bundled one; lorage_jax/nano/README.md says how it was made. The table has parts,
one file each in results/nano: `base` (methods without training), `seed*` (a generator), `lora*` (a
LoRA trained without prompts) and `time`. A part without a file is trained and measured, so the
command continues where it was interrupted, and several processes may measure different parts. A
file that was measured with other weights, data or settings is an error.
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

import generator as recipe
from goals import goals, goals_markdown

from lorage_jax import nano
from lorage_jax.config import ExperimentConfig
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.fields import to_dict
from lorage_jax.files.outputs import write_file
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.load import load_model
from lorage_jax.methods.lora import load_lora
from lorage_jax.methods.training import train
from lorage_jax.models.model import Model
from lorage_jax.provenance import provenance
from lorage_jax.report.world import combine, to_markdown
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import tools as world_tools
from lorage_jax.world.samples import WorldSample, draw_world
from lorage_jax.world.scores import base_arms, from_json, generator_arms, lora_arm, to_json
from lorage_jax.world.seconds import request_seconds

SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parents[1] / "results"
PROMPTS, QUERIES = 64, 4  # prompts per split and queries per prompt, with seed EVALUATION
EVALUATION = 2026


def generator(seed: int) -> Generator:
    """The generator after both stages, trained first if it does not exist yet."""
    train(recipe.config("tools", seed), resume=True)
    return load_generator(train(recipe.config("both", seed), resume=True).folder)


def lora_config(seed: int) -> ExperimentConfig:
    """The LoRA's run: same data and number of steps as the generator's second stage."""
    return dataclasses.replace(
        recipe.config("both", seed), out=str(recipe.RUNS / f"lora{seed}"), init=""
    )


def lora(seed: int, edge: Model) -> Model:
    """The edge with one LoRA for all tasks, trained first if it does not exist yet."""
    config = dataclasses.replace(lora_config(seed), method="lora")
    return load_lora(train(config, resume=True).folder, edge)


Part = tuple[tuple[ExperimentConfig, ...], Callable[[Model, Sequence[WorldSample]], dict[str, Any]]]


def parts() -> dict[str, Part]:
    """Each part: the runs it depends on, and the function that trains and measures it."""
    found: dict[str, Part] = {
        "base": (
            (),
            lambda edge, samples: to_json(
                base_arms(edge, load_model(nano.CLOUD, "float32"), samples)
            ),
        )
    }
    for seed in SEEDS:
        found[f"seed{seed}"] = (
            (recipe.config("tools", seed), recipe.config("both", seed)),
            lambda edge, samples, seed=seed: to_json(
                generator_arms(generator(seed), edge, samples, seed=seed)
            ),
        )
        found[f"lora{seed}"] = (
            (lora_config(seed),),
            lambda edge, samples, seed=seed: to_json(lora_arm(lora(seed, edge), samples)),
        )
    found["time"] = (
        (recipe.config("tools"), recipe.config("both")),
        lambda edge, samples: request_seconds(edge, generator(0), samples),
    )
    return found


def identity(*runs: ExperimentConfig, **drawn: int) -> dict[str, Any]:
    """Everything that a result depends on: weights, evaluation data, training runs in order."""
    found: dict[str, Any] = {
        "cloud": load_model(nano.CLOUD).fingerprint,
        "edge": load_model(nano.EDGE).fingerprint,
        "drawn": drawn | {"version": [world_prompts.VERSION, world_tools.VERSION]},
    }
    if runs:
        found["data"] = [data_fingerprint(run.data.sources) for run in runs]
        found["experiments"] = [_settings(run) for run in runs]
    return found


def _settings(run: ExperimentConfig) -> dict[str, Any]:
    settings = to_dict(run)
    for name in ("out", "cloud", "edge", "init"):  # places, which may differ
        del settings[name]
    return settings


def measured(path: Path, what: dict[str, Any], make: Callable[[], Any]) -> Any:
    """The result in `path`, or without a file that of `make`, which is then written.

    Exits with a message if the file has another identity than `what`.
    """
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        known, asked = _without_none(found["identity"]), _without_none(what)
        if known != asked:
            other = [key for key in asked if known.get(key) != asked[key]]
            raise SystemExit(
                f"{path} was measured with another {', '.join(other)}. Move it away to measure "
                "again, or go back to the old one."
            )
        return found["result"]
    began, result = time.time(), make()
    text = json.dumps(
        {
            "identity": what,
            "result": result,
            "seconds": time.time() - began,
            "provenance": origin(),
        }
    )
    path.parent.mkdir(exist_ok=True)
    write_file(path, text + "\n", overwrite=True)
    return result


def _without_none(value: Any) -> Any:
    """Drops settings that are None: older files lack some of today's settings."""
    if isinstance(value, list):
        return [_without_none(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_none(one) for key, one in value.items() if one is not None}


def origin() -> dict[str, Any]:
    """Provenance of the running script, called from the root of the checkout."""
    return provenance(["python", f"experiments/nano/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def main(names: Sequence[str]) -> None:
    known = parts()
    if unknown := set(names) - set(known):
        raise SystemExit(f"no part {', '.join(unknown)}; expected any of {', '.join(known)}.")
    edge, samples = load_model(nano.EDGE, "float32"), draw_world(PROMPTS, QUERIES, EVALUATION)
    found = {}
    for name in names or known:
        runs, measure = known[name]
        what = identity(*runs, prompts=PROMPTS, queries=QUERIES, seed=EVALUATION)
        path = RESULTS / "nano" / f"{name}.json"
        found[name] = measured(path, what, partial(measure, edge, samples))
    if names:
        return
    table = combine(
        [from_json(found[f"seed{seed}"]) for seed in SEEDS],
        from_json(found["base"]),
        [from_json(found[f"lora{seed}"]) for seed in SEEDS],
        found["time"],
    )
    table |= {"goals": goals(table), "provenance": origin()}
    text = to_markdown(table, "The nano pair") + goals_markdown(table["goals"])
    write_file(RESULTS / "nano.json", json.dumps(table, indent=1) + "\n", overwrite=True)
    write_file(RESULTS / "nano.md", text, overwrite=True)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
