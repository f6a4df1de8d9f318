"""LoRAMoE and MixLoRA beside an edge: the rows of Table 13 that cannot be merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.methods.loramoe import LoraMoe
from lorage_jax.methods.mixlora import MixLora
from lorage_jax.methods.routed import RoutedMethod
from lorage_jax.models.experts import Routed

ROUTED: tuple[type[RoutedMethod], ...] = (LoraMoe, MixLora)


def routed_pool(
    method: type[RoutedMethod], edge: ModelConfig, fill: Callable[[Any], Any]
) -> Routed:
    """All experts and routers of a method, at its default settings, as the decoder takes them.

    `fill` turns the tree of their leaves into arrays, or into shapes to trace or compile with.
    """
    assert method.settings is not None
    settings = method.settings()
    return method.routed(fill(method.leaves(edge, settings)), settings)
