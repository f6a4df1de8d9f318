"""The named model shapes of all families, which include the paper's models."""

from __future__ import annotations

from typing import Any

import lorage_jax.hf.families  # noqa: F401  its files register themselves
from lorage_jax.config import SIZES, ModelConfig
from lorage_jax.hf.family import FAMILIES

SHAPES = {name: config for family in FAMILIES.values() for name, config in family.shapes.items()}
# The last part of a model's name on the Hub -> the name of its shape.
KNOWN = {name: shape for family in FAMILIES.values() for name, shape in family.known.items()}


def known_shape(name: str) -> ModelConfig | None:
    """The shape of a model on the Hub or a folder of the same name; None if it is not known."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return SHAPES[KNOWN[last]] if last in KNOWN else None


def shape_name(config: ModelConfig) -> str | None:
    """The key in `SHAPES` with the same family, sizes and head tying; None if there is none."""

    def sizes(config: ModelConfig) -> list[Any]:
        return [getattr(config, name) for name in ("family", "tied_head", *SIZES)]

    return next((name for name, shape in SHAPES.items() if sizes(shape) == sizes(config)), None)
