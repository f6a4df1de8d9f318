"""The `--adapter DIR[=WEIGHT]` option: a model with PEFT adapters merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorage_jax.errors import ConfigError
from lorage_jax.fields import home_path
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.load import load_model
from lorage_jax.models.model import Model


def load_adapted(folder: Path, dtype: str, adapters: Sequence[str]) -> Model:
    """Loads a model and merges the adapters into it. Raises ConfigError and WeightsError."""
    given = [_parse(one) for one in adapters]  # before anything large is loaded
    model = load_model(folder, dtype)
    if not given:
        return model
    return load_adapter([path for path, _ in given], model, [weight for _, weight in given])


def _parse(text: str) -> tuple[Path, float]:
    """`DIR` or `DIR=WEIGHT`; a folder may have = in its name."""
    path, equals, weight = text.rpartition("=")
    if not equals or home_path(text).is_dir():
        path, weight = text, "1"
    try:
        found = home_path(path), float(weight)
    except ValueError:
        raise ConfigError(
            f"--adapter is {text!r}; expected a folder, or a folder and a weight as in {path}=0.5."
        ) from None
    if not found[0].is_dir():
        raise ConfigError(f"--adapter: {path} is not a folder; expected a PEFT folder.")
    return found
