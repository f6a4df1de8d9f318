"""Tasks on a few words, defined by the system prompt alone: operation x style x format.

The user gives three to five words. The prompt says what to do with them ("Reverse the words."), in
which letters ("Use only capital letters.") and how to write the answer ("Put bars around each
word."), with these sentences in any order; or it shows solved samples; or both. The answer cannot
be known without the prompt.

Splits: `train`; `paraphrase`, the same tasks in unseen wordings; `composition`, unseen pairs of a
seen operation and a seen format, in every style; `samples`, tasks of `train` shown only by samples
whose user texts occur in no training sample.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from random import Random

from lorage_jax.data.templates import few_shot_prompt
from lorage_jax.errors import DataError
from lorage_jax.world.words_texts import FORMATS, OPERATIONS, PLAIN, STYLES, Part

SPLITS = ("train", "paraphrase", "composition", "samples")

WORDS = tuple(
    "apple bell bird boat book bread car cat chair city cloud corn cup dog door duck egg farm "
    "fire fish foot frog game gold grass hand hat hill home horse ice ink iron key king lake "
    "lamp leaf lion map milk moon mouse nest night oil park pear queen rain ring road rose salt "
    "sand ship snow song star stone sun tree wolf yarn".split()
)
SIZES = (3, 4, 5)  # words of a user text

# Shares of training prompts: a description alone, both, or samples under a generic line.
MIX = {"description": 0.6, "both": 0.2, "samples": 0.2}
GENERIC = (
    "Answer as in the samples.",
    "Do the same as in these samples.",
    "The samples show what to do.",
    "Treat the words as the samples do.",
    "Look at the samples and do the same.",
)
# A model trained from scratch learns to copy words on these operations; without them it does not.
EASY = ("copy", "reverse", "first", "last")
SAMPLES = 3  # in a prompt without a description; with a description there are one or two


@dataclass(frozen=True)
class Task:
    """A way to transform the words of a user: operation, style and format."""

    operation: Part
    style: Part
    format: Part

    @property
    def name(self) -> str:
        return f"{self.operation.name}/{self.style.name}/{self.format.name}"

    def answer(self, user: str) -> str:
        """The right answer to a user text."""
        words = self.operation.apply(user.split())
        return self.format.apply([self.style.apply(word) for word in words])


@dataclass(frozen=True)
class TextPrompt:
    """A system prompt with its task, the user texts solved in it, and words for further texts."""

    system: str
    task: Task
    samples: tuple[str, ...] = ()
    words: tuple[str, ...] = WORDS

    def draw(self, rng: Random) -> tuple[str, str]:
        """Draws (user text, target), never one of the samples."""
        user = draw_user(rng, self.words)
        while user in self.samples:
            user = draw_user(rng, self.words)
        return user, self.task.answer(user)


def draw_user(rng: Random, words: tuple[str, ...] = WORDS) -> str:
    """Draws a user text of three to five different words."""
    return " ".join(rng.sample(words, rng.choice(SIZES)))


def draw_prompt(split: str, rng: Random) -> TextPrompt:
    """Draws a prompt for a task of the split; all its tasks are equally likely."""
    task = rng.choice(tasks(split))
    if split in ("paraphrase", "composition"):
        return TextPrompt(_describe(task, split == "paraphrase", rng), task)
    carries = "samples"
    if split == "train":
        carries = rng.choices(tuple(MIX), tuple(MIX.values()))[0]
    if carries == "description":
        return TextPrompt(_describe(task, False, rng), task)
    if carries == "both":
        text = _describe(task, False, rng)
        users = tuple(
            draw_sample(split, size, rng) for size in rng.sample(SIZES, rng.choice((1, 2)))
        )
    else:
        text = rng.choice(GENERIC)
        users = _telling_samples(task, split, rng)
    samples = [(user, task.answer(user)) for user in users]
    return TextPrompt(few_shot_prompt(text, samples), task, users)


@cache
def tasks(split: str) -> tuple[Task, ...]:
    """Every task of a split. Raises DataError for an unknown split."""
    if split not in SPLITS:
        raise DataError(f"text tasks have no split {split!r}; expected {', '.join(SPLITS)}.")
    return tuple(
        Task(operation, style, format)
        for i, operation in enumerate(OPERATIONS)
        # A number has no letters: under `count` all styles would be one task.
        for style in ((PLAIN,) if operation.name == "count" else STYLES)
        for j, format in enumerate(FORMATS)
        if held_out(i, j) == (split == "composition")
    )


@cache
def easy_tasks() -> tuple[Task, ...]:
    """The tasks of `train` that only pick words by their position."""
    return tuple(t for t in tasks("train") if t.operation.name in EASY and t.style is PLAIN)


def draw_easy_prompt(split: str, rng: Random, words: tuple[str, ...] = WORDS) -> TextPrompt:
    """Draws a description of an easy task, in the wordings of `train` or `paraphrase`."""
    task = rng.choice(easy_tasks())
    return TextPrompt(_describe(task, split == "paraphrase", rng), task, words=words)


def held_out(operation: int, format: int) -> bool:
    """True if this pair of indices is kept for `composition`; both parts occur in seen pairs."""
    return (3 * operation + format) % 8 == 0


def sample_half(user: str) -> str:
    """The split whose prompts may show this user text as a solved sample: `train` or `samples`."""
    return ("train", "samples")[zlib.crc32(user.encode()) & 1]


def draw_sample(split: str, size: int, rng: Random) -> str:
    """Draws a user text of `size` words that this split may show as a sample."""
    while True:
        user = " ".join(rng.sample(WORDS, size))
        if sample_half(user) == split:
            return user


def _telling_samples(task: Task, split: str, rng: Random) -> tuple[str, ...]:
    """Draws samples that tell the task: no other operation answers all of them alike.

    Three words alone would not do: their first two are also all but the last.
    """
    while True:
        sizes = rng.sample(SIZES, SAMPLES)
        users = tuple(draw_sample(split, size, rng) for size in sizes)
        # Styles and formats show in every answer; only operations can be taken for each other.
        alike = [
            operation
            for operation in OPERATIONS
            if all(
                Task(operation, task.style, task.format).answer(user) == task.answer(user)
                for user in users
            )
        ]
        if len(alike) == 1:
            return users


def _describe(task: Task, unseen: bool, rng: Random) -> str:
    parts = (task.operation, task.style, task.format)
    wordings = [rng.choice(part.unseen if unseen else part.seen) for part in parts]
    sentences = [text[0].upper() + text[1:] + "." for text in wordings if text]
    rng.shuffle(sentences)
    return " ".join(sentences)


def find(system: str) -> TextPrompt | None:
    """Recognises a description by its sentences; None if any sentence is unknown.

    The order of the sentences, capitals and spaces do not matter. Samples are not read.
    """
    parts = _parts()
    sentences = [text for text in map(_plain, system.split(".")) if text]
    found = [parts[text] for text in sentences if text in parts]
    kinds = {kind: [p for p in found if p in kind] for kind in (OPERATIONS, STYLES, FORMATS)}
    operations, styles, formats = kinds.values()
    if len(found) < len(sentences) or len(operations) != 1 or len(styles) > 1 or len(formats) != 1:
        return None
    return TextPrompt(system, Task(operations[0], styles[0] if styles else PLAIN, formats[0]))


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().split())


@cache
def _parts() -> dict[str, Part]:
    """All parts, by wording."""
    parts = (*OPERATIONS, *STYLES, *FORMATS)
    return {text: part for part in parts for text in part.seen + part.unseen if text}


def blind_ceiling(split: str, users: int = 300) -> float:
    """Highest expected exact match without the prompt.

    Such an answerer gives the answer that most tasks of the split have for the user text; the
    result is a mean over `users` drawn user texts.
    """
    return _blind_ceiling(tasks(split), users)


def easy_blind_ceiling() -> float:
    """`blind_ceiling` of the easy tasks, which are the same in every split."""
    return _blind_ceiling(easy_tasks(), 300)


@cache
def _blind_ceiling(tasks: tuple[Task, ...], users: int) -> float:
    rng, total = Random("blind"), 0
    for _ in range(users):
        user = draw_user(rng)
        total += max(Counter(task.answer(user) for task in tasks).values())
    return total / users / len(tasks)
