"""`lorage inspect`: show a card or a generator as text, picture and JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorage_jax.bundled import generator_folder
from lorage_jax.data.records import read_text
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.files.fingerprint import short
from lorage_jax.files.outputs import check_file
from lorage_jax.files.safetensors import read_tensors
from lorage_jax.generator.card import load_card
from lorage_jax.generator.store import GENERATOR, TENSORS, held_out, load_generator, read_values
from lorage_jax.report.explain import to_text
from lorage_jax.report.pictures import expert_heatmap, gate_heatmap, gate_text

if TYPE_CHECKING:
    from lorage_jax.commands.options import Inspect

PROMPTS = 512  # of each family that --tasks draws
PICTURED = ("operation", "format", "kind", "unseen kind")


def run(options: Inspect) -> dict[str, Any]:
    """Prints and returns the facts; with `--png`, also draws them."""
    options = dataclasses.replace(options, path=generator_folder(options.path))
    path, png = options.path, options.png
    is_generator = path.is_dir() and (path / TENSORS).exists()
    _check(options, is_generator)
    if png is not None:
        check_file(png, options.overwrite)
    if options.tasks:
        return _tasks(options)
    return _generator(path) if is_generator else _card(options)


def _check(options: Inspect, is_generator: bool) -> None:
    for name in ("prompt", "cloud", "task_file"):
        if getattr(options, name) is not None and not options.tasks:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} needs --tasks, which lets a generator read prompts.")
    if options.png is not None and options.png.suffix.lower() != ".png":
        raise ConfigError(f"--png is {options.png}; expected a name that ends in .png.")
    if options.tasks and not is_generator:
        raise ConfigError(
            f"{options.path} is not a generator; --tasks needs {GENERATOR.origin}"
            f"{GENERATOR.hint(options.path)}"
        )
    if options.png is not None and is_generator and not options.tasks:
        raise ConfigError(
            f"{options.path} is a generator, not a card; --png needs a card, or --tasks."
        )


def _card(options: Inspect) -> dict[str, Any]:
    try:
        card = load_card(options.path)
    except WeightsError:
        if (hint := GENERATOR.hint(options.path)) == ".":
            raise
        raise WeightsError(f"{options.path} holds no card and is no generator{hint}") from None
    open_gates = np.count_nonzero(card.gates, axis=1)
    print(f"generator {card.generator}\nedge      {card.edge}")
    print("".join(f"{name}: {value}\n" for name, value in card.about.items()), end="")
    print(gate_text(card.gates))
    if options.png is not None:
        gate_heatmap(card.gates, options.png, options.overwrite)
        print(f"picture: {options.png}")
    return {**card.to_dict(), "open_gates_per_layer": open_gates.tolist()}


def _tasks(options: Inspect) -> dict[str, Any]:
    """The facts of a generator, and the tasks that its experts serve."""
    from lorage_jax.report.role_prompts import explain_tasks, explain_world  # imports training

    prompt = None if options.prompt is None else read_text(options.prompt)
    generator = load_generator(options.path, options.cloud)
    facts = _generator(options.path)
    if options.task_file is None:
        found = explain_world(generator, prompts_per_family=PROMPTS, seed=0, prompt=prompt)
    else:
        held = held_out(facts)
        found = explain_tasks(generator, options.task_file, held=held, prompt=prompt)
    print(f"\n{to_text(found)}")
    if options.png is not None:
        rows = {kind: gates for kind, gates in found["gates"].items() if kind in PICTURED}
        expert_heatmap(rows, options.png, options.overwrite)
        print(f"picture: {options.png}")
    return {**facts, "tasks": found}


def _generator(path: Path) -> dict[str, Any]:
    values = read_values(path)
    tensors = read_tensors(path / TENSORS)
    sizes: dict[str, int] = {}
    for name, array in tensors.items():
        part = ".".join(name.split(".")[:2])
        sizes[part] = sizes.get(part, 0) + array.size
    print(f"{GENERATOR.format}  {values['fingerprint']}")
    for role in ("cloud", "edge"):
        place = values[role].get("path") or values[role].get("relative", "(not recorded)")
        print(f"{role:6}{place}  {short(values[role]['fingerprint'])}")
    print("".join(f"{name:24}{size:14,} numbers\n" for name, size in sizes.items()), end="")
    settings = values["generator"] | values["about"]
    print("  ".join(f"{name}={value}" for name, value in settings.items()))
    return {**values, "sizes": sizes}
