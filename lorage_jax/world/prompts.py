"""Built-in data whose tasks are defined by the system prompt alone, in two families.

`words`: tasks on a few words, which the prompt describes, shows by solved samples, or both
(`words.py`). `tools`: the prompt lists tools and the user asks for something to be done
(`tools.py`). The answer cannot be known without the prompt; `blind_ceiling` gives how often it can
be guessed.

| split         | holds                                                          | families     |
|---------------|----------------------------------------------------------------|--------------|
| `train`       | seen tasks and tools, in seen wordings                         | words, tools |
| `paraphrase`  | seen tasks and tools, in unseen wordings                       | words, tools |
| `composition` | unseen pairs of an operation and a format, in seen wordings    | words        |
| `samples`     | seen tasks, shown only by samples that are not in training     | words        |
| `tools`       | unseen tools                                                   | tools        |

    >>> from lorage_jax.world import prompts
    >>> [record] = prompts.draw("paraphrase", 1, seed=0, family="words")
    >>> record.system, record.user, record.target
    ('End with stop. Remove the first word.', 'cat home leaf star key', 'home leaf star key stop')
    >>> prompts.find(record.system).answer("sun cat oil")
    'cat oil stop'

Two more families exist only to pretrain small models and must be asked for by name: `easy` holds a
few operations of `words`, on which a model learns to copy; `objects` holds the same operations on
the objects of the tools, which a model is slow to tell apart if it sees nothing but tool calls.

There are too many prompts to list, so they are drawn: equal seeds draw equal prompts, no draw holds
a prompt twice, and a longer draw begins with the shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random

from lorage_jax.data.records import Record
from lorage_jax.errors import DataError
from lorage_jax.world import tools as world_tools
from lorage_jax.world import tools_texts
from lorage_jax.world import words as world_words

SPLITS = ("train", "paraphrase", "composition", "samples", "tools")

# Increase when the drawn data change: a resumed run must see the same examples.
VERSION = 2

TRIES = 10_000  # give up after this many draws in a row without a new prompt or text


@dataclass(frozen=True)
class Prompt:
    """A system prompt, its task, and a source of (user, target) pairs under it.

    Attributes:
        system: the prompt.
        task: name of the task. For `tools` it is the dialect, since a call in one dialect is wrong
            in every other.
        family: key in `FAMILIES`.
        draw: draws (user text, target).
        answer: the right answer to any user text, if the family can compute it (`words` can).
        parts: the building blocks of the prompt, by kind. For `words`: its operation, style and
            format. For `tools`: word (which of a verb's three), pattern and input of the dialect,
            and the verbs (each by its first word) and objects of the tools listed.
    """

    system: str
    task: str
    family: str
    draw: Callable[[Random], tuple[str, str]]
    answer: Callable[[str], str] | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Family:
    """Tasks of one kind, with `draw_prompt(split, rng)` and the blind ceiling of each split."""

    splits: tuple[str, ...]
    draw_prompt: Callable[[str, Random], Prompt]
    blind: Callable[[str], float]
    weight: float


def _words(prompt: world_words.TextPrompt) -> Prompt:
    task = prompt.task
    parts = {
        "operation": (task.operation.name,),
        "style": (task.style.name,),
        "format": (task.format.name,),
    }
    return Prompt(prompt.system, task.name, "words", prompt.draw, task.answer, parts)


def _draw_words(split: str, rng: Random) -> Prompt:
    return _words(world_words.draw_prompt(split, rng))


# Splits of this module and their names in `tools.py`.
_TOOL_SPLITS = {"train": "train", "paraphrase": "paraphrase", "tools": "unseen"}


def _draw_tools(split: str, rng: Random) -> Prompt:
    return _tools(world_tools.draw_prompt(_TOOL_SPLITS[split], rng))


def _tools(prompt: world_tools.ToolPrompt) -> Prompt:
    dialect = prompt.dialect
    parts = {
        "word": (str(dialect.word),),
        "pattern": (dialect.pattern,),
        "input": (dialect.input,),
        "verb": tuple(dict.fromkeys(tool.verb.words[0] for tool in prompt.tools)),
        "object": tuple(dict.fromkeys(tool.object for tool in prompt.tools)),
    }
    task = "/".join((str(dialect.word), dialect.pattern, dialect.input))
    return Prompt(prompt.system, task, "tools", prompt.draw, parts=parts)


def _blind_easy(split: str) -> float:
    return world_words.easy_blind_ceiling()


def _blind_tools(split: str) -> float:
    return world_tools.blind_ceiling(_TOOL_SPLITS[split])


def _draw_easy(split: str, rng: Random) -> Prompt:
    return _words(world_words.draw_easy_prompt(split, rng))


def _draw_objects(split: str, rng: Random) -> Prompt:
    prompt = world_words.draw_easy_prompt(split, rng, tools_texts.OBJECTS)
    return replace(_words(prompt), family="objects")


EASY_SPLITS = ("train", "paraphrase")

# A family of weight 0 is drawn only if it is asked for by name.
FAMILIES = {
    "words": Family(world_words.SPLITS, _draw_words, world_words.blind_ceiling, weight=3),
    "tools": Family(tuple(_TOOL_SPLITS), _draw_tools, _blind_tools, weight=1),
    "easy": Family(EASY_SPLITS, _draw_easy, _blind_easy, weight=0),
    "objects": Family(EASY_SPLITS, _draw_objects, _blind_easy, weight=0),
}


def families(split: str) -> tuple[str, ...]:
    """The families that a split is drawn from. DataError for an unknown split."""
    if split not in SPLITS:
        raise DataError(f"synthetic data has no split {split!r}; expected {', '.join(SPLITS)}.")
    return tuple(name for name, f in FAMILIES.items() if split in f.splits and f.weight > 0)


def _check(split: str, family: str) -> None:
    families(split)
    if family not in FAMILIES:
        raise DataError(f"synthetic data has no family {family!r}; expected {', '.join(FAMILIES)}.")
    if split not in FAMILIES[family].splits:
        raise DataError(
            f"the family {family!r} has no split {split!r}; it has "
            f"{', '.join(FAMILIES[family].splits)}."
        )


def draw_prompt(split: str, rng: Random, family: str = "", task: str = "") -> Prompt:
    """Draws a prompt of a split, from `family` or from all its families by weight.

    With `task`, a prompt of that task. Raises DataError for an unknown split, family or task, and
    for a family without this split.
    """
    if task:
        for _ in range(TRIES):
            prompt = draw_prompt(split, rng, family)
            if prompt.task == task:
                return prompt
        raise DataError(
            f"synthetic data has no task {task!r} in {split!r}; one of its tasks is "
            f"{draw_prompt(split, rng, family).task!r}."
        )
    if not family:
        names = families(split)
        family = rng.choices(names, [FAMILIES[name].weight for name in names])[0]
    _check(split, family)
    return FAMILIES[family].draw_prompt(split, rng)


def draw_group(
    split: str, queries: int, rng: Random, family: str = "", task: str = ""
) -> list[Record]:
    """Draws one prompt, of `task` if one is named, with `queries` different user texts."""
    return _group(draw_prompt(split, rng, family, task), queries, rng)


def draw_groups(
    split: str, n: int, queries: int, seed: int, family: str = ""
) -> list[list[Record]]:
    """Draws `n` different prompts with `queries` different user texts each.

    The prompts do not depend on `queries`. Raises DataError if the split has fewer than `n`.
    """
    prompts = _different_prompts(split, n, seed, family)
    return [_group(prompt, queries, rng) for prompt, rng in prompts]


def draw_prompts(split: str, n: int, seed: int, family: str = "") -> list[Prompt]:
    """The same prompts as `draw_groups`, with their tasks instead of user texts."""
    return [prompt for prompt, _ in _different_prompts(split, n, seed, family)]


def _different_prompts(
    split: str, n: int, seed: int, family: str
) -> Iterator[tuple[Prompt, Random]]:
    """Yields each prompt with the random generator that drew it, for further draws."""
    seen: set[str] = set()
    for number in range(n):
        rng = Random(f"synthetic {VERSION}/{split}/{family}/{seed}/{number}")
        for _ in range(TRIES):
            prompt = draw_prompt(split, rng, family)
            if prompt.system not in seen:
                break
        else:
            raise DataError(f"{n} different prompts of {split!r} are too many; found {number}.")
        seen.add(prompt.system)
        yield prompt, rng


def draw(split: str, n: int, seed: int, family: str = "") -> list[Record]:
    """Draws `n` records, each under a prompt of its own."""
    return [record for group in draw_groups(split, n, 1, seed, family) for record in group]


def _group(prompt: Prompt, queries: int, rng: Random) -> list[Record]:
    records: dict[str, Record] = {}
    for _ in range(TRIES + queries):
        if len(records) >= queries:
            return list(records.values())
        user, target = prompt.draw(rng)
        records.setdefault(user, Record(prompt.system, user, target))
    raise DataError(f"{queries} different user texts are too many for the task {prompt.task!r}.")


def blind_ceiling(split: str, family: str) -> float:
    """Highest expected exact match without the prompt, for an answerer that sees the user text."""
    _check(split, family)
    return FAMILIES[family].blind(split)


def find(system: str) -> Prompt | None:
    """Recognises a prompt of `words` or `tools`, so that answers under it can be scored.

    `words` prompts may have their sentences in any order, and any capitals and spaces; of `tools`
    prompts only the list of tools is read. Returns None for any other text.
    """
    if words := world_words.find(system):
        return _words(words)
    tools = world_tools.find(system)
    return _tools(tools) if tools else None
