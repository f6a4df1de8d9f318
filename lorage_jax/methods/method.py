"""The protocol of a method, and the registry through which evaluation and training find it.

A method makes the edge answer as a system prompt asks. It works in two stages: `prepare` reads the
prompts, before any question is known; `place` returns the model that answers a batch of questions.
Evaluation knows nothing else about a method:

    @register
    @dataclass(frozen=True)
    class Shouted(Method):
        name: ClassVar[str] = "shouted"
        what: ClassVar[str] = "the system prompt in capitals, in the edge's own context"
        edge_sees_prompt: ClassVar[bool] = True

        @classmethod
        def load(cls, edge, source=None):
            return cls()

        def prepare(self, prompts):
            return [Conditioning(context=prompt.upper()) for prompt in prompts]

        def place(self, edge, rows):
            return Placement(edge)

All files of this folder are discovered, so that adding a method changes no other file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, TypeVar

from jax.sharding import NamedSharding

from lorage_jax.errors import ConfigError, did_you_mean
from lorage_jax.generator.card import Card
from lorage_jax.infer.place import place_beside
from lorage_jax.infer.prefixes import Prefix
from lorage_jax.models.experts import Experts
from lorage_jax.models.model import Model

_REGISTRY: dict[str, type[Method]] = {}
METHODS: Mapping[str, type[Method]] = MappingProxyType(_REGISTRY)  # complete after `discover()`

Solved = Mapping[str, Sequence[tuple[str, str]]]  # prompt -> solved (user, target) pairs

M = TypeVar("M", bound="type[Method]")
E = TypeVar("E", bound=Experts)


@dataclass(frozen=True)
class Conditioning:
    """One prepared system prompt.

    Attributes:
        card: gates [L, E] for the placement's pool.
        context: text that the edge itself reads before every question.
        prefix: keys and values that precede every question.
        facts: JSON values to record in the result, such as `cloud_tokens`.
    """

    card: Card | None = None
    context: str | None = None
    prefix: Prefix | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """The model that answers a batch, with what is not in its weights.

    Attributes:
        model: the edge, or the edge with an adapter merged.
        cards: one card per row of the batch; None if none are unmerged.
        pool: the experts that the cards combine, or experts with routers of their own.
        prefixes: keys and values in front of each row, one per row of the batch or one for all.
    """

    model: Model
    cards: Sequence[Card] | None = None
    pool: Experts | None = None
    prefixes: Sequence[Prefix] | None = None

    def prefix_rows(self, rows: int) -> list[Prefix] | None:
        """One prefix for each of `rows` rows, or None without prefixes."""
        if self.prefixes is None or len(self.prefixes) == rows:
            return None if self.prefixes is None else list(self.prefixes)
        if len(self.prefixes) != 1:
            raise ConfigError(f"{len(self.prefixes)} prefixes were placed for {rows} rows.")
        return list(self.prefixes) * rows


class Method(Protocol):
    """A way to specialise an edge for a system prompt; the module's docstring has an example.

    Attributes:
        name: key in the registry, in results and in tables.
        what: one phrase for readers of a table.
        edge_sees_prompt: True if the edge reads `Conditioning.context` before every question.
        few_shot: True if that context is the benchmark's own few-shot prompt, not wrapped in turns.
        mergeable: False if its trained parts cannot become weights of the edge, so that every
            request pays for them.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    edge_sees_prompt: ClassVar[bool] = False
    few_shot: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Self:
        """Loads the method that was trained for `edge` and saved in the folder `source`.

        Methods without trained parts ignore `source`. Raises WeightsError if the folder belongs to
        another method or edge.
        """
        ...

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Prepares system prompts; returns one conditioning per prompt, in order."""
        ...

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        """Returns the model that answers a batch of questions in place of the bare `edge`.

        `rows` has one conditioning per row, or a single one for all rows, which may be merged into
        the weights. Several are applied unmerged, row by row.
        """
        ...

    def trained_values(self) -> int | None:
        """The number of values that training changes, if the loaded method knows it.

        By default None: a comparison counts them in the method's run, or in its folder.
        """
        return None


class FromSamples:
    """A method that learns from solved samples of a prompt's task when it prepares the prompt.

    Must be a dataclass. A comparison passes it the samples that other methods read after the
    prompt.
    """

    solved: Solved

    @abstractmethod
    def given(self, solved: Solved, seed: int = 0, learning: Any = None) -> Self:
        """The same method with these samples, all of which it uses, and a seed of its draws.

        `learning` are settings instead of those of `learning()`.
        """

    @classmethod
    @abstractmethod
    def learning(cls) -> Any:
        """The settings, a dataclass, with which it learns unless others are given."""


def register(cls: M) -> M:
    """Class decorator that adds a method to the registry under its `name`.

    Raises ConfigError if another class already has that name.
    """
    other = _REGISTRY.setdefault(cls.name, cls)
    if other is not cls:
        raise ConfigError(
            f"two methods are called {cls.name!r}: {other.__module__}.{other.__qualname__} and "
            f"{cls.__module__}.{cls.__qualname__}. Rename one."
        )
    return cls


def get_method(name: str) -> type[Method]:
    """The class registered as `name`. Raises ConfigError, listing all names, if there is none."""
    discover()
    if name not in METHODS:
        raise ConfigError(
            f"there is no method {name!r}; expected {', '.join(sorted(METHODS))}"
            f"{did_you_mean(name, METHODS) or '.'}"
        )
    return METHODS[name]


@functools.cache
def discover() -> None:
    """Imports all files of this folder, which register their methods."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def shared(rows: Sequence[Conditioning]) -> bool:
    """True if one conditioning serves the whole batch."""
    return all(row is rows[0] for row in rows)


def beside(pool: E, edge: Model) -> E:
    """Replicates experts over the devices of `edge`."""
    if isinstance(edge.params["embed"].sharding, NamedSharding):
        return place_beside(pool, edge)
    return pool
