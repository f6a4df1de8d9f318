"""Everyday tasks for a pretrained edge: prompts in wordings that no training data have.

They are of kinds that the bundled generator `smollm2` was trained on; the wordings are our own, and
training never saw them. Answers to drawn words are computed, the others come from short lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from lorage_jax.world.prompts import Prompt

FAMILY = "everyday"

PLURALS = {
    "ankle": "ankles", "bakery": "bakeries", "bench": "benches", "blanket": "blankets",
    "bridge": "bridges", "candle": "candles", "carrot": "carrots", "cherry": "cherries",
    "child": "children", "city": "cities", "cloud": "clouds", "curtain": "curtains",
    "daisy": "daisies", "dish": "dishes", "donkey": "donkeys", "feather": "feathers",
    "fox": "foxes", "glass": "glasses", "goose": "geese", "hammer": "hammers", "knife": "knives",
    "ladder": "ladders", "lady": "ladies", "leaf": "leaves", "man": "men", "mouse": "mice",
    "pencil": "pencils", "pillow": "pillows", "potato": "potatoes", "rabbit": "rabbits",
    "river": "rivers", "shelf": "shelves", "spoon": "spoons", "story": "stories",
    "tomato": "tomatoes", "tooth": "teeth", "tractor": "tractors", "watch": "watches",
    "wolf": "wolves", "woman": "women",
}  # fmt: skip
PASTS = {
    "ask": "asked", "bake": "baked", "bring": "brought", "build": "built", "buy": "bought",
    "carry": "carried", "catch": "caught", "clean": "cleaned", "climb": "climbed",
    "dance": "danced", "draw": "drew", "drink": "drank", "drive": "drove", "eat": "ate",
    "feel": "felt", "find": "found", "fly": "flew", "forget": "forgot", "grow": "grew",
    "hear": "heard", "jump": "jumped", "keep": "kept", "knock": "knocked", "laugh": "laughed",
    "listen": "listened", "open": "opened", "paint": "painted", "play": "played", "run": "ran",
    "see": "saw", "sell": "sold", "sing": "sang", "sleep": "slept", "speak": "spoke",
    "stop": "stopped", "swim": "swam", "take": "took", "think": "thought", "walk": "walked",
    "write": "wrote",
}  # fmt: skip
CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna",
    "Belgium": "Brussels", "Bulgaria": "Sofia", "Canada": "Ottawa", "Chile": "Santiago",
    "China": "Beijing", "Croatia": "Zagreb", "Cuba": "Havana", "Denmark": "Copenhagen",
    "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin",
    "Ghana": "Accra", "Greece": "Athens", "Hungary": "Budapest", "Iceland": "Reykjavik",
    "India": "New Delhi", "Iran": "Tehran", "Iraq": "Baghdad", "Ireland": "Dublin",
    "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Latvia": "Riga", "Nepal": "Kathmandu",
    "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Romania": "Bucharest", "Russia": "Moscow", "Serbia": "Belgrade", "Spain": "Madrid",
    "Sweden": "Stockholm", "Thailand": "Bangkok", "Turkey": "Ankara", "Ukraine": "Kyiv",
}  # fmt: skip
WORDS = (*PLURALS, *PASTS)
SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def last_of(text: str) -> str:
    """The last of several words that commas separate; empty for any other text."""
    first, _, last = text.rpartition(", ")
    return last if first else ""


def middle_of(text: str) -> str:
    """The middle one of several words that commas separate; empty for any other text."""
    words = text.split(", ")
    return words[len(words) // 2] if len(words) > 2 and len(words) % 2 else ""


def in_words(number: str) -> str:
    """A number from 1 to 99, written out; empty for any other text."""
    if not (number.isascii() and number.isdecimal() and 0 < int(number) < 100):
        return ""
    tens, ones = divmod(int(number), 10)
    if tens < 2:
        return SMALL[int(number)]
    return TENS[tens] + (f"-{SMALL[ones]}" if ones else "")


def _number(rng: Random) -> str:
    return str(rng.randrange(1, 100))


def _five(rng: Random) -> str:
    return ", ".join(rng.sample(WORDS, 5))


@dataclass(frozen=True)
class Everyday:
    """One task: its wordings, a draw of a question, and the answers to its questions.

    The answer to any other question is empty.
    """

    name: str
    wordings: tuple[str, ...]
    question: Callable[[Random], str]
    answer: Callable[[str], str]

    def prompt(self, rng: Random) -> Prompt:
        """The task in one of its wordings."""

        def draw(rng: Random) -> tuple[str, str]:
            user = self.question(rng)
            return user, self.answer(user)

        return Prompt(rng.choice(self.wordings), self.name, FAMILY, draw, self.answer)


def _listed(name: str, pairs: Mapping[str, str], *wordings: str) -> Everyday:
    """A task of a list; a question that is not in it has an empty answer."""
    return Everyday(
        name, wordings, lambda rng: rng.choice(list(pairs)), lambda text: pairs.get(text, "")
    )


TASKS = (
    _listed(
        "plural",
        PLURALS,
        "Each message is a noun. Reply with the form that is used for more than one.",
        "I write one thing, you write many: the plural and nothing else.",
    ),
    _listed(
        "past",
        PASTS,
        "Each message is a verb. Reply with its form in the simple past.",
        "Answer with the verb as one would say it about last week.",
    ),
    _listed(
        "capital",
        CAPITALS,
        "For every country that I mention, tell me the capital city.",
        "I name a nation, you name its capital and nothing else.",
    ),
    Everyday(
        "number",
        (
            "I type a number in digits and you spell it out in English.",
            "Read every number aloud: how is it said in words?",
        ),
        _number,
        in_words,
    ),
    Everyday(
        "last",
        (
            "Out of every list of words, give me back the final one alone.",
            "Each message has several words. Copy just the one at the very end.",
        ),
        _five,
        last_of,
    ),
    Everyday(
        "middle",
        (
            "Out of every list of words, give me back the one right in the center.",
            "Each message has five words. Copy just the third of them.",
        ),
        _five,
        middle_of,
    ),
)


def draw_everyday(rng: Random, besides: str = "") -> Prompt:
    """A random task, other than `besides`, in one of its wordings."""
    return rng.choice([task for task in TASKS if task.name != besides]).prompt(rng)


def find_everyday(system: str) -> Prompt | None:
    """The task that has this wording, or None."""
    wanted = " ".join(system.split())
    for task in TASKS:
        if wanted in task.wordings:
            return Everyday(task.name, (wanted,), task.question, task.answer).prompt(Random(0))
    return None
