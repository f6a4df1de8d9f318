"""The arithmetic of a config: what decides the logits of given weights besides these weights.

Fingerprints cover weights alone. Whatever was made for a model therefore records its arithmetic,
too, and is refused where config.json says something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.fields import to_dict
from lorage_jax.hf.family import to_values

# Fields that change no logits of given ids. A head of its own is one of the weights.
NO_EFFECT = {"bos_id", "eos_ids", "pad_id", "max_positions", "tied_head"}
# Fields that the names and shapes of the weights tell; with them, head_dim tells the heads.
IN_SHAPES = {
    *("vocab_size", "width", "layers", "heads", "kv_heads", "ffn_width"),
    *("qkv_bias", "out_bias", "ffn_bias"),
}


def arithmetic(config: ModelConfig) -> dict[str, Any]:
    """The arithmetic as JSON values, without what the weights or the family imply."""
    values = to_values(config)
    if config.query_scale == config.head_dim**-0.5:
        del values["query_scale"]
    if not any(config.sliding):
        del values["sliding"]
        values["window"] = None
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in NO_EFFECT | IN_SHAPES
    }


def different_arithmetic(recorded: Mapping[str, Any], found: ModelConfig) -> list[str]:
    """Describes each field in which a config differs from a recorded `arithmetic`."""
    own, values = arithmetic(found), to_dict(found)
    return [
        f"{name} is {values.get(name)!r}; in training it was {recorded.get(name, 'the default')!r}"
        for name in sorted({*recorded, *own})
        if not _same(recorded.get(name), own.get(name))
    ]


def _same(one: Any, other: Any) -> bool:
    """True for equal values. Files may hold the float32 next to a decimal."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
