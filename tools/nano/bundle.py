"""Copies the nano pair, or its generator, into the package.

    python tools/nano/bundle.py cloud runs/nano_cloud_tools3/model
    python tools/nano/bundle.py edge runs/nano_edge_tools/model
    python tools/nano/bundle.py generator runs/nano/seed0/generator

A model is copied as `lorage pretrain` wrote it, in bfloat16. A new model invalidates the bundled
generator, so train and bundle the generator next. The generator is written in bfloat16. Before it
replaces the bundled one, it must load, and together with the models it must fit into LIMIT.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from lorage_jax import nano
from lorage_jax.files.outputs import new_folder
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.store import load_generator, save_generator
from lorage_jax.hf.load import load_model
from lorage_jax.world import prompts as world_prompts

LIMIT = 40 << 20  # bytes
CARDS = 16  # prompts whose gates are compared with the original's


def bundle_model(source: Path, target: Path) -> None:
    load_model(source)  # fail before anything is replaced
    with new_folder(target, overwrite=True) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def bundle_generator(source: Path) -> None:
    generator = load_generator(source, cloud=nano.CLOUD)
    here = dataclasses.replace(generator, edge_source=nano.EDGE)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / "generator"
        save_generator(here, tried, dtype="bfloat16")
        print(report(generator, tried))
    save_generator(here, nano.GENERATOR, overwrite=True, dtype="bfloat16")


def report(original: Generator, folder: Path) -> str:
    """A text with sizes, and the largest change of a gate by rounding over CARDS prompts."""
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in (nano.CLOUD, nano.EDGE, folder)
    }
    if sum(sizes.values()) > LIMIT:
        raise SystemExit(f"the bundle has {sizes} bytes; expected at most {LIMIT} in all.")
    bundled = load_generator(folder)
    prompts = [r.system for r in world_prompts.draw("paraphrase", CARDS, seed=0, family="words")]
    pairs = zip(specialize(original, prompts), specialize(bundled, prompts), strict=True)
    worst = max(float(np.abs(a.gates - b.gates).max()) for a, b in pairs)
    lines = [f"{name:10} {size / 1e6:6.2f} MB" for name, size in sizes.items()]
    return "\n".join([*lines, f"largest difference of a gate: {worst:.4f}"])


def main(args: list[str]) -> None:
    models = {"cloud": nano.CLOUD, "edge": nano.EDGE}
    if len(args) != 2 or args[0] not in (*models, "generator"):
        raise SystemExit(f"expected cloud, edge or generator, and a folder.\n\n{__doc__}")
    what, source = args[0], Path(args[1])
    if what == "generator":
        bundle_generator(source)
    else:
        bundle_model(source, models[what])


if __name__ == "__main__":
    main(sys.argv[1:])
