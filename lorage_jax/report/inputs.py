"""Reads result files and cards for a report; one message names all unusable files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorage_jax.errors import DataError, LorageError
from lorage_jax.evaluate.results import EvalResult, ToolResult
from lorage_jax.fields import home_path
from lorage_jax.files.manifest import manifest_of
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
    """One result file of a bench, or of any command's --json."""

    name: str  # of the file, unique within a report
    values: Values

    @property
    def what(self) -> str:
        """The measurement, in one or two words."""
        bench = self.values.get("bench")
        return f"bench {bench}" if isinstance(bench, str) else _command(self.values)

    def part(self, *keys: str) -> Values:
        """The dict at these keys; empty if there is none."""
        found: Any = self.values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Evaluation(Result):
    """A result of `lorage eval`: its tasks, or one of its sets of GPT4Tools records."""

    result: EvalResult

    @property
    def what(self) -> str:
        """The measurement, in one word."""
        return "eval"

    @property
    def tools(self) -> ToolResult | None:
        """The set of GPT4Tools records, if this is one."""
        return next(iter(self.result.gpt4tools.values()), None)


@dataclass(frozen=True)
class NamedCard:
    """A card, its label in the report, and the name of its file."""

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
    """All results and cards of a report, in the order given."""

    results: tuple[Result, ...]
    cards: tuple[NamedCard, ...]

    @property
    def evaluations(self) -> list[Evaluation]:
        """The results of `lorage eval`."""
        return [result for result in self.results if isinstance(result, Evaluation)]

    def bench(self, name: str) -> list[Result]:
        """The results of one measurement of `lorage bench`."""
        return [result for result in self.results if result.values.get("bench") == name]


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """The results and cards of all files. Raises DataError, which names every unusable file."""
    results: list[Result] = []
    cards: list[NamedCard] = []
    faults: list[str] = []
    unique = {home_path(path).absolute(): path for path in reversed(paths)}
    paths = [path for path in paths if unique.get(home_path(path).absolute()) is path]
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            found = _read(home_path(path))
            if isinstance(found, Card):
                cards.append(NamedCard(name, name, found))
                continue
            parts = _results(name, found, path)
        except LorageError as error:
            faults.append(str(error))
        else:
            results += parts
            cards += [card for one in parts for card in _cards_of(one)]
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
        raise DataError(
            f"{path} is not a result: it holds a {type(values).__name__}, not an object."
        )
    if values.get("format") == CARD_FORMAT:
        return card_from_dict(values, str(path))
    return values


def _results(name: str, values: Values, path: Path) -> list[Result]:
    """The results of a file; an evaluation gives one more per set of GPT4Tools records."""
    origin = values.get("provenance")
    ours = isinstance(origin, dict) and origin.get("format") == RESULT_FORMAT
    if origin is not None and not ours:
        raise DataError(f"{path} has a provenance that is not of format {RESULT_FORMAT!r}.")
    if values.get("kind") == "eval":
        return list(_evaluations(name, values, EvalResult.from_json(values, str(path))))
    if not ours and not isinstance(values.get("bench"), str):  # older results have no provenance
        raise DataError(f"{path} is JSON, but not a result of lorage and not a card{_hint(path)}")
    return [Result(name, values)]


def _hint(path: Path) -> str:
    """The end of a message about a file; names its folder, if that holds a card."""
    ours = path.name in manifest_of(path.parent).get("files", ())
    whole = ours and (path.parent / "card.json").is_file()
    return (
        f". It is a part of a folder that has a card: give the folder, {path.parent}." * whole
        or "."
    )


def _evaluations(name: str, values: Values, result: EvalResult) -> Iterator[Evaluation]:
    if not all(result.gpt4tools):  # an older file, whose single set has no name
        yield Evaluation(name, values, result)
        return
    if result.arms:
        yield Evaluation(name, values, replace(result, gpt4tools={}))
    for one, tools in result.gpt4tools.items():
        alone = replace(result, arms={}, gaps={}, words=[], cards={}, gpt4tools={one: tools})
        yield Evaluation(f"{name}, {one}", values, alone)


def _cards_of(result: Result) -> list[NamedCard]:
    cards = result.result.cards if isinstance(result, Evaluation) else {}
    return [NamedCard(task, result.name, card) for task, card in cards.items()]


def _labelled(cards: list[NamedCard]) -> tuple[NamedCard, ...]:
    """The cards, with the file's name appended to labels that occur more than once."""
    often = Counter(card.label for card in cards)
    return tuple(
        card if often[card.label] == 1 else replace(card, label=f"{card.label} ({card.source})")
        for card in cards
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Short unique names: the file's, or the folder's for a card.json."""
    short = [path.parent.name if path.name == "card.json" else path.name for path in paths]
    often = Counter(short)
    return [
        name if name and often[name] == 1 else str(path)
        for name, path in zip(short, paths, strict=True)
    ]


def _command(values: Values) -> str:
    words = str(values["provenance"].get("command", "")).split()
    return words[1] if len(words) > 1 else "lorage"
