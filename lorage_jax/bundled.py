"""Generators that come with the package, by name, and the folder where models are kept."""

from __future__ import annotations

import os
from pathlib import Path

from lorage_jax import nano, smollm2
from lorage_jax.fields import home_path

GENERATORS = {nano.NAME: nano.GENERATOR, smollm2.NAME: smollm2.GENERATOR}
MODELS = "LORAGE_MODELS"  # the environment variable that names the folder of all models


def generator_folder(path: Path) -> Path:
    """`path`, or the bundled generator of that name if there is no such folder."""
    bundled = GENERATORS.get(str(path))
    return path if bundled is None or path.exists() else bundled


def kept_models() -> Path:
    """The folder of Hugging Face folders: $LORAGE_MODELS, by default ~/.cache/lorage-models."""
    return home_path(os.environ.get(MODELS) or "~/.cache/lorage-models")
