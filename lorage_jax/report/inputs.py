"""Reads result files and cards for a report. Anything else is refused, all of it in one message."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorage_jax.errors import DataError, LorageError
from lorage_jax.generator.card import FORMAT as CARD_FORMAT
from lorage_jax.generator.card import Card, card_from_dict, load_card
from lorage_jax.provenance import FORMAT as RESULT_FORMAT

EXPECTED = (
    "Expected files that --json of lorage eval, bench or another command wrote, and cards "
    "(card.json, or a folder that holds one)."
)
Values = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One result file. `kind`: eval, bench, or other (any command's --json)."""

    name: str  # of the file, unique within a report
    kind: str
    values: Values

    @property
    def what(self) -> str:
        """Which measurement it is, in one or two words."""
        if self.kind == "bench":
            return f"bench {self.values['bench']}"
        return "eval" if self.kind == "eval" else _command(self.values)

    def part(self, *keys: str) -> Values:
        """The dict at these keys; empty when there is none."""
        found: Any = self.values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class NamedCard:
    """A card, what the report calls it, and the file it came from."""

    label: str
    source: str
    card: Card

    @property
    def prompt(self) -> str | None:
        """The system prompt, when the card carries it."""
        prompt = self.card.about.get("prompt")
        return prompt if isinstance(prompt, str) else None


@dataclass(frozen=True)
class Inputs:
    """Everything that a report is made from, in the order given."""

    results: tuple[Result, ...]
    cards: tuple[NamedCard, ...]

    def kind(self, kind: str, bench: str | None = None) -> list[Result]:
        """The results of a kind; of a bench, those of that measurement."""
        return [
            result
            for result in self.results
            if result.kind == kind and bench in (None, result.values.get("bench"))
        ]


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Reads them all. DataError: one message that names each file that is no use."""
    results: list[Result] = []
    cards: list[NamedCard] = []
    faults: list[str] = []
    unique = {path.expanduser().absolute(): path for path in reversed(paths)}
    paths = [path for path in paths if unique.get(path.expanduser().absolute()) is path]
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            found = _read(path.expanduser())
            if isinstance(found, Card):
                cards.append(NamedCard(name, name, found))
                continue
            parts = [Result(label, _kind(one, path), one) for label, one in _parts(name, found)]
            cards += [card for one in parts if one.kind == "eval" for card in _cards_of(one, path)]
        except LorageError as error:
            faults.append(str(error))
        else:
            results += parts
    if faults:
        raise DataError("\n".join([*faults, EXPECTED]))
    if not results and not cards:
        raise DataError(f"there is nothing to report on. {EXPECTED}")
    return Inputs(tuple(results), _labelled(cards))


def _read(path: Path) -> Card | Values:
    if path.is_dir():
        return load_card(path)
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {str(error)[:120]}.") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is no result: it holds a {type(values).__name__}, not an object.")
    if values.get("format") == CARD_FORMAT:
        return card_from_dict(values, str(path))
    return values


def _parts(name: str, values: Values) -> list[tuple[str, Values]]:
    """A result of GPT4Tools on several sets of records as one result a set."""
    tools = values.get("gpt4tools")
    sets = tools.get("sets") if isinstance(tools, dict) else None
    if not isinstance(sets, dict) or not sets:
        return [(name, values)]
    rest = {key: value for key, value in values.items() if key != "gpt4tools"}
    bare = rest | {"arms": {}, "gaps": {}, "words": [], "cards": {}}
    tasks = [(name, rest)] if values.get("arms") else []
    return tasks + [(f"{name}, {one}", bare | {"gpt4tools": sets[one]}) for one in sets]


def _kind(values: Values, path: Path) -> str:
    origin = values.get("provenance")
    ours = isinstance(origin, dict) and origin.get("format") == RESULT_FORMAT
    if origin is not None and not ours:
        raise DataError(f"{path} has a provenance that is not of format {RESULT_FORMAT!r}.")
    if values.get("kind") == "eval":
        if fault := _fault_of_eval(values):
            raise DataError(f"{path} is a damaged result of lorage eval: {fault}.")
        return "eval"
    if isinstance(values.get("bench"), str):  # older ones have no provenance
        return "bench"
    if ours:
        return "other"
    raise DataError(f"{path} is JSON, but no result of lorage and no card.")


# Names of eval's parts, and how many dicts they are deep.
EVAL_PARTS = {"model": 1, "results": 2, "arms": 2, "gaps": 3, "cards": 2, "gpt4tools": 1}


def _fault_of_eval(values: Values) -> str | None:
    for name, depth in EVAL_PARTS.items():
        if values.get(name) is not None and not _is_nested(values[name], depth):
            return f"{name} is not of the expected shape"
    for name, arm in (values.get("arms") or {}).items():
        if not _is_nested(arm.get("tasks", {}), 2):
            return f"arms.{name}.tasks is not of the expected shape"
    for name, arm in _either(values, "gpt4tools", "arms").items():
        if not isinstance(arm, dict):
            return f"gpt4tools.arms.{name} is not of the expected shape"
    words = values.get("words") or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return "words is not a list of sentences"
    if not any(values.get(name) for name in ("arms", "gpt4tools")):
        return "it has neither arms nor gpt4tools"
    return None


def _is_nested(value: Any, depth: int) -> bool:
    """Whether it is a dict, of dicts, and so on, `depth` deep."""
    if depth == 0:
        return True
    return isinstance(value, dict) and all(_is_nested(v, depth - 1) for v in value.values())


def _either(values: Values, *keys: str) -> Values:
    for key in keys:
        values = values.get(key) or {}
        if not isinstance(values, dict):
            return {}
    return values


def _cards_of(result: Result, path: Path) -> list[NamedCard]:
    return [
        NamedCard(task, result.name, card_from_dict(values, f"{path}, cards.{task}"))
        for task, values in result.part("cards").items()
    ]


def _labelled(cards: list[NamedCard]) -> tuple[NamedCard, ...]:
    """A label that occurs twice gets its file's name behind it."""
    often = Counter(card.label for card in cards)
    return tuple(
        card if often[card.label] == 1 else replace(card, label=f"{card.label} ({card.source})")
        for card in cards
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Short and unique: the file's name, or its folder's where card.json says nothing."""
    short = [path.parent.name if path.name == "card.json" else path.name for path in paths]
    often = Counter(short)
    return [
        name if name and often[name] == 1 else str(path)
        for name, path in zip(short, paths, strict=True)
    ]


def _command(values: Values) -> str:
    words = str(values["provenance"].get("command", "")).split()
    return words[1] if len(words) > 1 else "lorage"
