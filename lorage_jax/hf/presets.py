"""The named model shapes of all families: the paper's models."""

from __future__ import annotations

from typing import Any

import lorage_jax.hf.families  # noqa: F401  its files register themselves
from lorage_jax.config import SIZES, ModelConfig
from lorage_jax.hf.family import FAMILIES

SHAPES = {name: config for family in FAMILIES.values() for name, config in family.shapes.items()}
# The last part of these models' names on the Hub -> their shape.
KNOWN = {name: shape for family in FAMILIES.values() for name, shape in family.known.items()}


def known_shape(name: str) -> ModelConfig | None:
    """The shape of a model on the Hub, or of a folder with the same name; else None."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return SHAPES[KNOWN[last]] if last in KNOWN else None


def shape_name(config: ModelConfig) -> str | None:
    """The key in `SHAPES` of a model with this family and these sizes, head tied alike."""

    def sizes(config: ModelConfig) -> list[Any]:
        return [getattr(config, name) for name in ("family", "tied_head", *SIZES)]

    return next((name for name, shape in SHAPES.items() if sizes(shape) == sizes(config)), None)
