"""The benchmark's own few-shot prompt in the edge's context, as in lm-eval's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.models.model import Model


@register
@dataclass(frozen=True)
class FewShot(Method):
    """The edge reads the benchmark's few-shot prompt before every question, without turns."""

    name: ClassVar[str] = "few_shot"
    what: ClassVar[str] = "no adapter, lm-eval's own few-shot prompt in the edge's context"
    edge_sees_prompt: ClassVar[bool] = True
    few_shot: ClassVar[bool] = True

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> FewShot:
        return cls()

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        return [Conditioning(context=prompt) for prompt in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(edge)
