"""The protocol of a method, and the registry through which evaluation and training find it.

A method turns a system prompt into something that makes the edge answer as the prompt asks. It
works in two stages. `prepare` reads prompts, before any question is known; `place` says how the
edge then answers a batch of questions. Evaluation knows nothing else about a method:

    @register
    @dataclass(frozen=True)
    class Shouted(Method):
        name: ClassVar[str] = "shouted"
        what: ClassVar[str] = "the system prompt in capitals, in the edge's own context"
        edge_sees_prompt: ClassVar[bool] = True

        def prepare(self, prompts):
            return [Conditioning(context=prompt.upper()) for prompt in prompts]

        def place(self, edge, rows):
            return Placement(edge)

A file in this folder is found by itself: adding a method touches no other file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, TypeVar

from jax.sharding import NamedSharding

from lorage_jax.errors import ConfigError
from lorage_jax.generator.card import Card
from lorage_jax.infer.score import place_beside
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

_REGISTRY: dict[str, type[Method]] = {}
METHODS: Mapping[str, type[Method]] = MappingProxyType(_REGISTRY)  # complete after `discover()`

M = TypeVar("M", bound="type[Method]")


@dataclass(frozen=True)
class Conditioning:
    """The outcome of preparing one system prompt, before any question is asked.

    Attributes:
        card: gates for the pool of the placement, [L, E].
        context: text that the edge itself reads in front of every question.
        facts: JSON values for the result, such as `cloud_tokens`.
    """

    card: Card | None = None
    context: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """The model that answers a batch, with unmerged cards if every row has its own.

    Attributes:
        model: the edge, or the edge with an adapter merged.
        cards: one per row of the batch; None when nothing is unmerged.
        pool: the experts that `cards` weigh.
    """

    model: Model
    cards: Sequence[Card] | None = None
    pool: Pool | None = None


class Method(Protocol):
    """A way to specialise an edge by a system prompt.

    Attributes:
        name: key in the registry, in results and in tables.
        what: one sentence for readers of a table.
        edge_sees_prompt: the edge reads `Conditioning.context` in front of every question.
        few_shot: that context is the benchmark's own few-shot prompt, without turns around it.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    edge_sees_prompt: ClassVar[bool] = False
    few_shot: ClassVar[bool] = False

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Self:
        """The method as it was trained for `edge` and saved in `source`.

        Methods without trained parts ignore `source`. Raises WeightsError for a folder of another
        method or another edge.
        """
        ...

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """One conditioning per system prompt, in their order."""
        ...

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        """How `edge` answers a batch: one conditioning per row, or a single one for all rows.

        A single one may be merged into the weights; several are applied unmerged, row by row.
        """
        ...


def register(cls: M) -> M:
    """Class decorator that adds a method to the registry under its `name`.

    Raises ConfigError when another class has the name already.
    """
    other = _REGISTRY.setdefault(cls.name, cls)
    if other is not cls:
        raise ConfigError(
            f"two methods are called {cls.name!r}: {other.__module__}.{other.__qualname__} and "
            f"{cls.__module__}.{cls.__qualname__}. Rename one."
        )
    return cls


def get_method(name: str) -> type[Method]:
    """The class registered as `name`. ConfigError, listing the names, if there is none."""
    discover()
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; expected {', '.join(sorted(METHODS))}.")
    return METHODS[name]


@functools.cache
def discover() -> None:
    """Imports every file of this folder, each of which registers its method."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def shared(rows: Sequence[Conditioning]) -> bool:
    """True if one conditioning serves the whole batch."""
    return all(row is rows[0] for row in rows)


def beside(pool: Pool, edge: Model) -> Pool:
    """The pool on the devices of `edge`, whole on each of them."""
    if isinstance(edge.params["embed"].sharding, NamedSharding):
        return place_beside(pool, edge)
    return pool
