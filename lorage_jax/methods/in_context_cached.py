"""The prompt in the edge's own context, read once: its keys and values serve all its questions.

The answers are those of `in_context`. What differs is the work: a question costs its own tokens,
and memory for the prompt's keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lorage_jax.data.templates import Template, question
from lorage_jax.errors import ConfigError
from lorage_jax.infer.prefixes import read_tokens
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.models.model import Model

# User texts without a common beginning, by which the tokens in front of any user text are found.
PROBES = ("a", "The", "1", '"', "ü")


@register
@dataclass(frozen=True, eq=False)
class InContextCached(Method):
    """The edge reads the prompt once; each question follows its cached keys and values."""

    name: ClassVar[str] = "in_context_cached"
    what: ClassVar[str] = "no adapter, the same system prompt in the edge's cache, read once"
    edge_sees_prompt: ClassVar[bool] = True

    edge: Model

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> InContextCached:
        return cls(edge)

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Reads each distinct prompt. Raises ConfigError if one does not fit into the context."""
        turns = self.edge.template
        if turns is None:
            raise ConfigError("in_context_cached needs an edge with a tokenizer.")
        ids = {prompt: shared_ids(turns, prompt) for prompt in prompts}
        read = dict(zip(ids, read_tokens(self.edge, list(ids.values())), strict=True))
        return [
            Conditioning(
                context=prompt,
                prefix=read[prompt],
                facts={"prefix_slots": read[prompt].slots},
            )
            for prompt in prompts
        ]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        """Raises ConfigError if a row has no prefix, as `prepare` gives it."""
        prefixes = [row.prefix for row in rows if row.prefix is not None]
        if len(prefixes) < len(rows):
            raise ConfigError(
                "a row has no prefix; expected the conditionings of in_context_cached.prepare."
            )
        return Placement(edge, prefixes=prefixes)


def shared_ids(turns: Template, prompt: str) -> list[int]:
    """The token ids with which every question under a system prompt begins."""
    whole = [turns.ids(question(user, prompt)) for user in PROBES]
    columns = enumerate(zip(*whole, strict=False))
    count = next((i for i, ids in columns if len(set(ids)) > 1), min(map(len, whole)))
    return whole[0][:count]
