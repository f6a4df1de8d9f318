"""Tasks on a few words, defined by the system prompt alone: operation x style x format.

The user gives three to five words. The prompt says what to do with them ("Reverse the words."), in
which letters ("Use only capital letters.") and how to write the answer ("Put bars around each
word."), in any order of these sentences; or it shows solved samples; or both. Without the prompt
the answer cannot be known.

Splits: `train`; `paraphrase`, its tasks in unseen wordings; `composition`, unseen pairs of a seen
operation and a seen format, in every style; `samples`, tasks of `train` shown by samples alone, on
user texts that no sample in training has.
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

# Training prompts by what they carry: a description, both, or samples under a generic line.
MIX = {"description": 0.6, "both": 0.2, "samples": 0.2}
GENERIC = (
    "Answer as in the samples.",
    "Do the same as in these samples.",
    "The samples show what to do.",
    "Treat the words as the samples do.",
    "Look at the samples and do the same.",
)
# A model that starts from nothing learns to copy words on these operations, and is stuck without.
EASY = ("copy", "reverse", "first", "last")
SAMPLES = 3  # of a prompt without description; a description goes with one or two


@dataclass(frozen=True)
class Task:
    """What to do with the words of a user."""

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
    """A system prompt, its task, the user texts that are solved in it, and words for others."""

    system: str
    task: Task
    samples: tuple[str, ...] = ()
    words: tuple[str, ...] = WORDS

    def draw(self, rng: Random) -> tuple[str, str]:
        """(user, target); never one of the samples."""
        user = draw_user(rng, self.words)
        while user in self.samples:
            user = draw_user(rng, self.words)
        return user, self.task.answer(user)


def draw_user(rng: Random, words: tuple[str, ...] = WORDS) -> str:
    return " ".join(rng.sample(words, rng.choice(SIZES)))


def draw_prompt(split: str, rng: Random) -> TextPrompt:
    """A prompt for a task of the split, all tasks being equally likely."""
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
    """Every task of a split. DataError for an unknown split."""
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
    """The tasks of `train` that do no more than pick words out by their place."""
    return tuple(t for t in tasks("train") if t.operation.name in EASY and t.style is PLAIN)


def draw_easy_prompt(split: str, rng: Random, words: tuple[str, ...] = WORDS) -> TextPrompt:
    """A description of an easy task, as it also occurs in `train` or `paraphrase`."""
    task = rng.choice(easy_tasks())
    return TextPrompt(_describe(task, split == "paraphrase", rng), task, words=words)


def held_out(operation: int, format: int) -> bool:
    """Whether this pair of indices is kept for `composition`: each part stays seen in others."""
    return (3 * operation + format) % 8 == 0


def sample_half(user: str) -> str:
    """The split in whose prompts a user text may be a solved sample: `train` or `samples`."""
    return ("train", "samples")[zlib.crc32(user.encode()) & 1]


def draw_sample(split: str, size: int, rng: Random) -> str:
    """A user text of `size` words from the half of this split."""
    while True:
        user = " ".join(rng.sample(WORDS, size))
        if sample_half(user) == split:
            return user


def _telling_samples(task: Task, split: str, rng: Random) -> tuple[str, ...]:
    """Samples that no other task would answer alike: with three words, say, the first two are
    all but the last."""
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
    """The task that a description asks for, by its wordings; None if there is another sentence.

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
    """Parts by wording."""
    parts = (*OPERATIONS, *STYLES, *FORMATS)
    return {text: part for part in parts for text in part.seen + part.unseen if text}


def blind_ceiling(split: str, users: int = 300) -> float:
    """Expected exact match of the best answerer that does not see the prompt.

    It gives each user text the answer that most tasks of the split have; a mean over user texts.
    """
    return _blind_ceiling(tasks(split), users)


def easy_blind_ceiling(split: str) -> float:
    """The same for the easy tasks."""
    return _blind_ceiling(easy_tasks(), 300)


@cache
def _blind_ceiling(tasks: tuple[Task, ...], users: int) -> float:
    rng, total = Random("blind"), 0
    for _ in range(users):
        user = draw_user(rng)
        total += max(Counter(task.answer(user) for task in tasks).values())
    return total / users / len(tasks)
