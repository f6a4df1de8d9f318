"""Built-in data whose tasks are defined by the system prompt alone.

The user gives a few words; the prompt says what to do with them and how to write the answer.
Without the prompt the answer cannot be known, so a prompt-blind generator scores near zero.
Splits: `train`; `paraphrase`, seen tasks in unseen wordings; `composition`, unseen pairs of a
seen operation and a seen format. No prompt occurs in two splits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from lorage_jax.data.prompts import edge_prompt_with_system, edge_target
from lorage_jax.data.records import Record
from lorage_jax.errors import DataError

SPLITS = ("train", "paraphrase", "composition")

# Raise it when drawn data change: a resumed run must see the same examples.
VERSION = 1

WORDS = tuple(
    "apple bird boat book bread car cat chair city cloud cup dog door duck egg farm fire fish "
    "foot frog game gold grass hand hat hill home horse ice ink iron king lake lamp leaf lion "
    "map milk moon mouse nest night oil park pear queen rain ring road rose salt sand ship snow "
    "song star stone sun tree yarn".split()
)


@dataclass(frozen=True)
class Prompt:
    """A system prompt, the task behind it, and the right answer to any user text."""

    system: str
    task: str
    answer: Callable[[str], str]


@dataclass(frozen=True)
class Family:
    """Tasks over one kind of user text: `draw_user(rng)`, and the prompts of every split."""

    draw_user: Callable[[Random], str]
    prompts: Callable[[str], tuple[Prompt, ...]]


@dataclass(frozen=True)
class _Part:
    """Half of a task: what to do with the words, or how to write them. Wordings by use."""

    name: str
    apply: Callable
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def _part(name: str, apply: Callable, *wordings: str) -> _Part:
    """The last two wordings are kept for the split `paraphrase`."""
    return _Part(name, apply, wordings[:-2], wordings[-2:])


# Words -> words. No two agree on every input; all words of the unseen wordings are seen.
OPERATIONS = (
    _part(
        "copy",
        lambda w: w,
        "copy all the words",
        "repeat the words as they are",
        "write the same words",
        "write all the words as they are",
        "copy the same words",
    ),
    _part(
        "reverse",
        lambda w: w[::-1],
        "reverse the order of the words",
        "write the words from last to first",
        "put the words in reverse order",
        "reverse the words",
        "copy the words in reverse order",
    ),
    _part(
        "first",
        lambda w: w[:1],
        "give the first word",
        "keep only the first word",
        "write just the word at the start",
        "give only the word at the start",
        "write just the first word",
    ),
    _part(
        "last",
        lambda w: w[-1:],
        "give the last word",
        "keep only the last word",
        "write just the word at the end",
        "give only the word at the end",
        "write just the last word",
    ),
    _part(
        "second",
        lambda w: w[1:2],
        "give the second word",
        "keep only the second word",
        "write just the word in second place",
        "give only the word in second place",
        "write just the second word",
    ),
    _part(
        "sort",
        sorted,
        "sort the words by the alphabet",
        "put the words in order from a to z",
        "write the words in the order of the alphabet",
        "sort the words from a to z",
        "put the words in the order of the alphabet",
    ),
    _part(
        "upper",
        lambda w: [x.upper() for x in w],
        "write the words in capital letters",
        "change the words to upper case",
        "make all the letters capital",
        "write all the words in upper case",
        "change all the words to capital letters",
    ),
    _part(
        "count",
        lambda w: [str(len(w))],
        "count the words",
        "say how many words there are",
        "give the number of words",
        "give the count of words",
        "say the number of words there are",
    ),
    _part(
        "double",
        lambda w: [x for x in w for _ in range(2)],
        "write each word twice",
        "double each word",
        "repeat each word two times",
        "give each word twice",
        "write each word two times",
    ),
    _part(
        "drop_first",
        lambda w: w[1:],
        "drop the first word",
        "leave out the first word",
        "remove the word at the start",
        "leave out the word at the start",
        "remove the first word",
    ),
    _part(
        "drop_last",
        lambda w: w[:-1],
        "drop the last word",
        "leave out the last word",
        "remove the word at the end",
        "leave out the word at the end",
        "remove the last word",
    ),
    _part(
        "swap",
        lambda w: [w[1], w[0], *w[2:]],
        "swap the first two words",
        "change the places of words one and two",
        "exchange the first two words",
        "exchange words one and two",
        "change the places of the first two words",
    ),
    _part(
        "rotate",
        lambda w: [*w[1:], w[0]],
        "move the first word to the end",
        "put the first word in last place",
        "take the first word and put it at the end",
        "move the first word to last place",
        "put the first word at the end",
    ),
    _part(
        "initials",
        lambda w: [x[0] for x in w],
        "give the first letter of each word",
        "write only the letter each word begins with",
        "shorten each word to one letter",
        "write only the first letter of each word",
        "give the letter each word begins with",
    ),
)

# Words -> text. All differ even on a single word.
FORMATS = (
    _part(
        "comma",
        ", ".join,
        "separate with commas",
        "put a comma between words",
        "use commas as separators",
        "put commas between words",
        "separate by a comma",
    ),
    _part(
        "bars",
        lambda w: f"| {' | '.join(w)} |",
        "put bars around each word",
        "use bars on each side of a word",
        "separate with bars and close with bars",
        "put bars on each side of a word",
        "use bars around each word",
    ),
    _part(
        "brackets",
        lambda w: f"[ {' '.join(w)} ]",
        "put the answer in square brackets",
        "use square brackets around all of it",
        "open and close with square brackets",
        "put square brackets around all of it",
        "use square brackets around the answer",
    ),
    _part(
        "parens",
        lambda w: f"( {' '.join(w)} )",
        "put the answer in round brackets",
        "use round brackets around all of it",
        "open and close with round brackets",
        "put round brackets around all of it",
        "use round brackets around the answer",
    ),
    _part(
        "quotes",
        lambda w: " ".join(f'"{x}"' for x in w),
        "put quotes around each word",
        "quote each word",
        "use quote marks on each word",
        "put quote marks around each word",
        "use quotes on each word",
    ),
    _part(
        "stars",
        lambda w: f"* {' * '.join(w)}",
        "put a star before each word",
        "begin each word with a star",
        "make a list with stars",
        "use a star before each word",
        "make each word begin with a star",
    ),
    _part(
        "arrow",
        lambda w: f"-> {' '.join(w)}",
        "begin the answer with an arrow",
        "put an arrow at the start",
        "write an arrow before the answer",
        "begin with an arrow",
        "put an arrow before the answer",
    ),
    _part(
        "stop",
        lambda w: f"{' '.join(w)} stop",
        "close the answer with stop",
        "write stop at the end",
        "end the answer with stop",
        "put stop at the end",
        "end with stop",
    ),
)

_ORDERS = ("{operation}. {format}.", "{format}. {operation}.")


def held_out(operation: int, format: int) -> bool:
    """Whether this pair of indices is kept for `composition`: each part stays seen in others."""
    return (3 * operation + format) % len(FORMATS) == 0


def _word_prompts(split: str) -> tuple[Prompt, ...]:
    unseen = split == "paraphrase"
    prompts = []
    for i, operation in enumerate(OPERATIONS):
        for j, format in enumerate(FORMATS):
            if held_out(i, j) != (split == "composition"):
                continue
            answer = _answer(operation, format)
            task = f"{operation.name}/{format.name}"
            prompts += [
                Prompt(_sentences(order, doing, writing), task, answer)
                for doing in (operation.unseen if unseen else operation.seen)
                for writing in (format.unseen if unseen else format.seen)
                for order in _ORDERS
            ]
    return tuple(prompts)


def _answer(operation: _Part, format: _Part) -> Callable[[str], str]:
    return lambda user: format.apply(operation.apply(user.split()))


def _sentences(order: str, operation: str, format: str) -> str:
    parts = {"operation": operation, "format": format}
    return order.format(**{name: text[0].upper() + text[1:] for name, text in parts.items()})


def _draw_words(rng: Random) -> str:
    return " ".join(rng.sample(WORDS, rng.choice((3, 4))))


# A new family (tool calls, say) is one more entry here; its prompts join every split.
FAMILIES = {"words": Family(_draw_words, _word_prompts)}


@cache
def prompts(split: str) -> tuple[tuple[Family, Prompt], ...]:
    """Every prompt of a split with its family. DataError for an unknown split."""
    if split not in SPLITS:
        raise DataError(f"synthetic data has no split {split!r}; expected {', '.join(SPLITS)}.")
    return tuple((family, p) for family in FAMILIES.values() for p in family.prompts(split))


def draw_group(split: str, queries: int, rng: Random) -> list[Record]:
    """One random prompt of the split with `queries` different user texts."""
    return _group(*rng.choice(prompts(split)), queries, rng)


def draw_groups(split: str, n: int, queries: int, seed: int) -> list[list[Record]]:
    """`n` prompts with `queries` different user texts each; no prompt twice before all once."""
    rng = Random(f"{seed}/{split}")
    deck: list[tuple[Family, Prompt]] = []
    groups = []
    for _ in range(n):
        deck = deck or rng.sample(prompts(split), len(prompts(split)))
        groups.append(_group(*deck.pop(), queries, rng))
    return groups


def draw(split: str, n: int, seed: int) -> list[Record]:
    """`n` records, each under another prompt as long as there are unused ones."""
    return [record for group in draw_groups(split, n, 1, seed) for record in group]


def _group(family: Family, prompt: Prompt, queries: int, rng: Random) -> list[Record]:
    users: dict[str, None] = {}
    while len(users) < queries:
        users[family.draw_user(rng)] = None
    return [Record(prompt.system, user, prompt.answer(user)) for user in users]


def corpus(n: int, seed: int) -> list[str]:
    """`n` texts of this world, train split only, for a tokenizer or a tiny language model."""
    return [
        edge_prompt_with_system(record.system, record.user) + edge_target(record.target)
        for record in draw("train", n, seed)
    ]
