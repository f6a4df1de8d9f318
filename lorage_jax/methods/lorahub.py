"""LoraHub (arXiv 2307.13269): trained LoRAs combined for a new task, without gradients.

The weights w, one per LoRA and the same in all layers, are searched on a few solved examples of the
task: A = sum_i w_i A_i and B = sum_i w_i B_i, summed apart. They are the gates of a card whose pool
holds the LoRAs, so a combination is merged and exported as any card is. The search starts at w = 0,
the bare edge. It minimises the cross entropy divided by the number of examples, as the authors'
code does, plus 0.05 mean |w|. It is a CMA-ES (`methods.search`) whose best point is taken, in the
place of the authors' NGOpt with its recommendation.

The folder to load from holds PEFT folders, results of `lorage train` or anybody's LoRA on the FFN,
and `examples.jsonl`: rows {system, user, target}, the solved examples of each prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from lorage_jax.data.records import read_rows, to_record
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.fields import check_types, home_path, require
from lorage_jax.infer.score import score
from lorage_jax.methods.cards import place_cards
from lorage_jax.methods.method import (
    Conditioning,
    FromSamples,
    Method,
    Placement,
    Solved,
    register,
)
from lorage_jax.methods.search import minimise
from lorage_jax.methods.trained_loras import combination, equal_gates, read_loras
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

EXAMPLES = "examples.jsonl"


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search; the defaults are those of the authors' code."""

    budget: int = 40  # combinations to try
    bound: float = 1.5  # largest |w|
    penalty: float = 0.05  # weight of mean |w|
    examples: int = 5  # most solved examples per task
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        for name in ("budget", "examples"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; expected 1 or more.")


@register
@dataclass(frozen=True, eq=False)
class LoraHub(Method, FromSamples):
    """A combination of trained LoRAs for each prompt that has solved examples.

    Attributes:
        edge: the model of the search, in the turns of the LoRAs' training.
        pool: the LoRAs, one expert each.
        names: the LoRAs' folders.
        solved: examples of the prompts.
        search: settings.
    """

    name: ClassVar[str] = "lorahub"
    what: ClassVar[str] = "trained LoRAs, combined by a search on solved examples"

    edge: Model
    pool: Pool
    names: tuple[str, ...]
    solved: Solved
    search: SearchSettings = field(default_factory=SearchSettings)

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> LoraHub:
        if source is None:
            raise ConfigError("lorahub needs a folder of PEFT folders; none was given.")
        source = home_path(source)
        found = read_loras(source, edge)
        solved: dict[str, list[tuple[str, str]]] = {}
        if (source / EXAMPLES).exists():
            for place, row in read_rows(source / EXAMPLES):
                record = to_record(row, place)
                if record.earlier:
                    raise DataError(
                        f"{place}: has {len(record.earlier)} earlier turns; expected one question "
                        "and its answer."
                    )
                solved.setdefault(record.system, []).append((record.user, record.target))
        return cls(found.edge, found.pool, found.names, solved)

    def given(
        self, solved: Solved, seed: int = 0, learning: SearchSettings | None = None
    ) -> LoraHub:
        search = learning or self.search
        most = max(map(len, solved.values()), default=search.examples)
        search = dataclasses.replace(search, examples=most, seed=seed)
        return dataclasses.replace(self, solved=solved, search=search)

    @classmethod
    def learning(cls) -> SearchSettings:
        return SearchSettings()

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Searches once per prompt. Without examples, nothing is combined, as a fact says."""
        found = {prompt: self._prepared(prompt) for prompt in dict.fromkeys(prompts)}
        return [found[prompt] for prompt in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return place_cards(edge, self.pool, rows, self.name)

    def _prepared(self, prompt: str) -> Conditioning:
        solved = self.solved.get(prompt, ())[: self.search.examples]
        weights, loss = np.zeros(len(self.names)), None
        if solved:
            weights, loss = self.searched(solved)
        facts = {
            "examples": len(solved),
            "evaluations": self.search.budget if solved else 0,
            "loss": loss,
            "weights": dict(zip(self.names, weights.tolist(), strict=True)),
        }
        return Conditioning(card=combination(self.edge, self.pool, weights), facts=facts)

    def searched(self, solved: Sequence[tuple[str, str]]) -> tuple[np.ndarray, float]:
        """The weights [n] that suit solved (user, target) pairs best, and their objective."""
        turns = self.edge.template
        assert turns is not None  # of `load`
        asked = [(turns.prompt(user), turns.answer(target)) for user, target in solved]
        tokens = sum(len(answer) for _, answer in asked)

        def objective(points: np.ndarray) -> np.ndarray:
            gates = [equal_gates(self.edge, weights) for weights in points]
            each = [one for one in gates for _ in asked]
            scores = score(
                self.edge, asked * len(gates), gates=each, pool=self.pool, label="search"
            )
            total = [-one.loglikelihood for one in scores]
            nll = np.reshape(total, (len(gates), len(asked))).sum(1) / tokens
            return nll / len(asked) + self.search.penalty * np.abs(points).mean(1)

        return minimise(
            objective,
            np.zeros(len(self.names)),
            budget=self.search.budget,
            bound=self.search.bound,
            seed=self.search.seed,
        )
