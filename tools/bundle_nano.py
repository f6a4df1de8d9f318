"""Puts the nano pair and its generator, as trained by `experiments/nano.py`, into the package.

    python tools/bundle_nano.py [runs/nano/seed0/generator]

Copies the models' folders, writes the generator in bfloat16 beside them, and checks the whole: it
must load, be at most LIMIT, and give nearly the gates of the original.
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


def bundle(source: Path) -> None:
    generator = load_generator(source)
    edge = generator.edge_source
    if edge is None or generator.cloud.source is None:
        raise SystemExit(f"{source}: the models it was trained with are not where they were.")
    for folder, target in ((generator.cloud.source, nano.CLOUD), (edge, nano.EDGE)):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    here = dataclasses.replace(generator, cloud=load_model(nano.CLOUD), edge_source=nano.EDGE)
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


if __name__ == "__main__":
    bundle(Path(sys.argv[1] if sys.argv[1:] else "runs/nano/seed0/generator"))
