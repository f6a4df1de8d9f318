"""The bare edge, a baseline that never sees the system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.models.model import Model


@register
@dataclass(frozen=True)
class Bare(Method):
    """Ignores the prompt: the score that is possible without reading it."""

    name: ClassVar[str] = "bare"
    what: ClassVar[str] = "no adapter, the bare question"

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Bare:
        return cls()

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        return [Conditioning()] * len(prompts)

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(edge)
