"""Puts the nano pair, or its generator, into the package.

    python tools/bundle_nano.py cloud runs/nano_cloud_tools3/model
    python tools/bundle_nano.py edge runs/nano_edge_tools/model
    python tools/bundle_nano.py generator runs/nano/seed0/generator

A model is copied as `lorage pretrain` wrote it, in bfloat16; a new one makes the bundled generator
useless, so train and bundle that next. The generator is written in bfloat16 and the whole checked:
it must load, be at most LIMIT, and give nearly the gates of the original.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np

from lorage_jax import nano
from lorage_jax.data import synthetic
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.store import load_generator, save_generator
from lorage_jax.hf.load import load_model

LIMIT = 40 << 20  # bytes
CARDS = 16  # compared with those of the original


def bundle_model(source: Path, target: Path) -> None:
    load_model(source)  # an error, before anything is replaced
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def bundle_generator(source: Path) -> None:
    generator = load_generator(source, cloud=nano.CLOUD)
    here = dataclasses.replace(generator, edge_source=nano.EDGE)
    save_generator(here, nano.GENERATOR, overwrite=True, dtype="bfloat16")
    print(report(generator, load_generator(nano.GENERATOR)))


def report(original: Generator, bundled: Generator) -> str:
    """Sizes, and by how much rounding has moved the gates of some prompts."""
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in (nano.CLOUD, nano.EDGE, nano.GENERATOR)
    }
    if sum(sizes.values()) > LIMIT:
        raise SystemExit(f"the bundle has {sizes} bytes; expected at most {LIMIT}.")
    prompts = [r.system for r in synthetic.draw("paraphrase", CARDS, seed=0, family="words")]
    pairs = zip(specialize(original, prompts), specialize(bundled, prompts), strict=True)
    worst = max(float(np.abs(a.gates - b.gates).max()) for a, b in pairs)
    lines = [f"{name:10} {size / 1e6:6.2f} MB" for name, size in sizes.items()]
    return "\n".join([*lines, f"largest difference of a gate: {worst:.4f}"])


def main(what: str, source: str) -> None:
    if what == "generator":
        bundle_generator(Path(source))
    else:
        bundle_model(Path(source), {"cloud": nano.CLOUD, "edge": nano.EDGE}[what])


if __name__ == "__main__":
    main(*sys.argv[1:])
