"""The prompt in the edge's own context, the baseline of specialisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.models.model import Model


@register
@dataclass(frozen=True)
class InContext(Method):
    """The edge reads the prompt before every question, in the turns of training."""

    name: ClassVar[str] = "in_context"
    what: ClassVar[str] = "no adapter, the same system prompt in the edge's own context"
    edge_sees_prompt: ClassVar[bool] = True

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> InContext:
        return cls()

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        return [Conditioning(context=prompt) for prompt in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(edge)
