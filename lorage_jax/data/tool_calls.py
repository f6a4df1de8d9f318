"""Records in the format of GPT4Tools over a tool library of our own: verbs x objects.

A tool does one thing (blur) to one kind of object (faces), or to anything it is told. Its name is
one of several words for that ("Blur Faces", "Smudge Faces", "Soften Anything"), so which name is
right, which input it wants, and whether there is a tool at all, stands in the tool list alone:
`LISTS` records in a row share conversation, request and trace, and differ in their tools and, for
most of them, in their gold output. A model that does not know its tools cannot answer all of them.

Splits: `train` and `unseen` share no tool: the unseen ones are held-out pairs of a verb and an
object that are both seen in others, and for tools that take anything a held-out word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from random import Random
from string import ascii_lowercase

from lorage_jax.data.gpt4tools import to_tool_records
from lorage_jax.data.records import Row
from lorage_jax.errors import DataError

SPLITS = ("train", "unseen")
LISTS = 3  # tool lists for the same request

# Raise it when drawn data change: results name the data by split, size and seed.
VERSION = 1


@dataclass(frozen=True)
class Verb:
    """What tools can do. {o}: an object, {x}: the further argument, {t}: a text."""

    words: tuple[str, str, str]  # in tool names
    does: tuple[str, ...]  # in descriptions
    asks: tuple[str, ...]  # in requests; some share no word with the descriptions
    image: bool = True  # whether it works on a picture; else on a text
    extra: str = ""  # what the further argument is called
    extras: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()  # what it observes; without, it makes a new picture


COLOURS = ("red", "blue", "green", "yellow", "white", "black")
THINGS = ("balloons", "stones", "lamps", "barrels", "umbrellas")
WRITINGS = ("hello", "for sale", "mine", "do not touch", "made in May")
VERBS = (
    Verb(
        ("Blur", "Smudge", "Soften"),
        ("makes the {o} in a picture hard to recognise", "blurs all {o} that a picture shows"),
        ("Please blur the {o}.", "Nobody should know who or what the {o} are."),
    ),
    Verb(
        ("Outline", "Contour", "Encircle"),
        ("draws a line around the {o} in a picture", "marks where {o} begin and end"),
        ("Draw a line around the {o}.", "I would like to see the edges of the {o}."),
    ),
    Verb(
        ("Erase", "Remove", "Clear"),
        ("takes the {o} out of a picture", "gives the picture as if there were no {o}"),
        ("Take the {o} out, please.", "The {o} have to go."),
    ),
    Verb(
        ("Brighten", "Illuminate", "Lighten"),
        ("puts more light on the {o} in a picture", "makes dark {o} brighter"),
        ("Put more light on the {o}.", "I can hardly see the {o}, it is too dark there."),
    ),
    Verb(
        ("Enlarge", "Magnify", "Grow"),
        ("makes the {o} in a picture bigger", "shows {o} at twice their size"),
        ("Make the {o} bigger.", "The {o} are so small!"),
    ),
    Verb(
        ("Count", "Tally", "Number"),
        ("says how many {o} a picture shows", "counts the {o} in a picture"),
        ("How many {o} are there?", "Tell me the number of {o}, please."),
        reports=("2", "3", "5", "none", "12"),
    ),
    Verb(
        ("Find", "Locate", "Detect"),
        ("says where in a picture the {o} are", "finds the place of {o} in a picture"),
        ("Where are the {o}?", "I am looking for the {o}."),
        reports=("on the left", "on the right", "in the middle", "at the top"),
    ),
    Verb(
        ("Recolor", "Paint", "Tint"),
        ("changes the colour of the {o} in a picture", "gives {o} another colour"),
        ("Change the colour of the {o} to {x}.", "I want {x} {o}."),
        extra="the colour",
        extras=COLOURS,
    ),
    Verb(
        ("Replace", "Swap", "Exchange"),
        ("puts something else in the place of the {o}", "swaps the {o} for other things"),
        ("Put {x} in the place of the {o}.", "I would rather see {x} than the {o}."),
        extra="the things to show instead",
        extras=THINGS,
    ),
    Verb(
        ("Label", "Tag", "Inscribe"),
        ("writes a text beside the {o} in a picture", "puts words next to {o}"),
        ("Write {x} beside the {o}.", "The {o} should have a note that says {x}."),
        extra="the words to write",
        extras=WRITINGS,
    ),
    Verb(
        ("Draw", "Sketch", "Render"),
        ("makes a new picture of {o} from a text", "draws {o} as the text tells"),
        ("Make a new picture of {t}.", "I would like to look at {t}."),
        image=False,
    ),
    Verb(
        ("Explain", "Teach", "Recount"),
        ("answers with facts about {o}", "tells what is known of {o}"),
        ("Give me some facts about {t}.", "What should one know of {t}?"),
        image=False,
        reports=("they are quite common", "people like them", "little is known"),
    ),
)
OBJECTS = (
    "faces cars trees birds dogs cats windows flowers shoes hats boats chairs clouds signs books "
    "bottles"
).split()
KINDS = ("old", "small", "happy", "wooden", "strange")
PLACES = ("at night", "in the rain", "by the sea", "in a garden", "under a bridge")
ANYTHING = "anything"

PREAMBLE = """Workbench answers questions and works on pictures. It cannot look at a picture \
itself: it calls tools and believes what they report. It copies the names of files letter by letter.
TOOLS:
------

Workbench can call these tools:

"""
RULES = """
To call a tool, write:

```
Thought: Do I need to use a tool? Yes
Action: the tool to call, should be one of [{names}]
Action Input: what the tool is given
Observation: what the tool reports
```

To answer, or if no tool can help, write:

```
Thought: Do I need to use a tool? No
AI: [the answer]
```

Only files that were named exist. What a tool has made is found under the file name that it \
reported.

"""
TURNS = (
    "Human: This picture is called {file}. It shows {caption}.\nAI: Noted.\n",
    "Human: Here is {file}, a picture of {caption}.\nAI: I have it.\n",
    "Human: I have put {caption} into the file {file}.\nAI: Thank you.\n",
)
SUFFIX = "Workbench looks at pictures through its tools only. Let's think step by step.\n"
CALL = "Thought: Do I need to use a tool? Yes\nAction: {name}\nAction Input: {given}\nObservation:"
ANSWER = "Thought: Do I need to use a tool? No\nAI: {answer}\n"
MISSING = "None of my tools can do that."
CHATS = (
    ("Thank you, that is all.", "You are welcome."),
    ("Good morning! Who are you?", "I am Workbench, and I work on pictures."),
    ("What was the file called?", "It is called {file}."),
    ("Wait a moment before you begin.", "I am waiting."),
)
THEN = ("{first} After that: {second}", "{first} And when that is done: {second}")


@dataclass(frozen=True)
class Tool:
    """One entry of the library: a word for a verb, and an object or `anything`."""

    verb: Verb
    word: str
    object: str

    @property
    def name(self) -> str:
        return f"{self.word} {self.object.capitalize()}"

    def serves(self, task: Task) -> bool:
        """Whether a call of this tool does the task."""
        return self.verb is task.verb and self.object in (task.object, ANYTHING)

    def given(self, task: Task, file: str) -> str:
        """The right input: the file, then what to work on if the tool asks, then the rest."""
        if not self.verb.image:
            return task.text
        told = [task.object] if self.object == ANYTHING else []
        return ", ".join([file, *told, *([task.extra] if task.extra else [])])

    def line(self, rng: Random) -> str:
        """`> name: description`, in one of several wordings."""
        named = "objects you name" if self.verb.image else ANYTHING
        does = rng.choice(self.verb.does).format(
            o=named if self.object == ANYTHING else self.object
        )
        parts = ["the image path"] if self.verb.image else ["the text"]
        if self.verb.image and self.object == ANYTHING:
            parts.append("the objects")
        if self.verb.extra:
            parts.append(self.verb.extra)
        given = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        how = rng.choice(("The input is {}.", "It is given {}.", "Its input has to be {}."))
        commas = ", separated by commas" if len(parts) > 1 else ""
        return f"> {self.name}: {does}. {how.format(given + commas)}\n"


@dataclass(frozen=True)
class Task:
    """Something a user may want, whatever tools there are."""

    verb: Verb
    object: str
    extra: str
    text: str
    ask: str


@cache
def library(split: str) -> tuple[Tool, ...]:
    """All tools of a split. DataError for an unknown one."""
    if split not in SPLITS:
        raise DataError(f"tool calls have no split {split!r}; expected {', '.join(SPLITS)}.")
    unseen = split == "unseen"
    special = [
        Tool(verb, word, OBJECTS[j])
        for i, j in _pairs(unseen)
        for verb in [VERBS[i]]
        for word in verb.words
    ]
    general = [
        Tool(verb, word, ANYTHING)
        for verb in VERBS
        for word in (verb.words[2:] if unseen else verb.words[:2])
    ]
    return (*special, *general)


def _pairs(unseen: bool) -> list[tuple[int, int]]:
    """Indices of verb and object; a quarter of each row and column is held out."""
    every = ((i, j) for i in range(len(VERBS)) for j in range(len(OBJECTS)))
    return [(i, j) for i, j in every if ((3 * i + j) % 4 == 0) == unseen]


def draw(split: str, n: int, seed: int) -> list[Row]:
    """`n` rows {instruction, input, output, id}; a longer draw begins with the shorter one."""
    library(split)
    if n < 1:
        raise DataError(f"{n} tool calls were asked for; expected 1 or more.")
    groups = (_group(split, seed, group) for group in range(-(-n // LISTS)))
    texts = [pair for group in groups for pair in group][:n]
    return [
        {"instruction": instruction, "input": "", "output": output, "id": f"{split}-{seed}-{i}"}
        for i, (instruction, output) in enumerate(texts)
    ]


def to_prompt_records(rows: Iterable[Row]) -> list[dict[str, str]]:
    """Training data: the static part is the system prompt, the rest of the turn is the user's."""
    return [
        {
            "system": record.instruction.static,
            "user": record.instruction.dynamic,
            "target": record.output,
        }
        for record in to_tool_records(rows)
    ]


def _group(split: str, seed: int, group: int) -> list[tuple[str, str]]:
    """LISTS (instruction, output) of the same conversation, request and trace."""
    rng = Random(f"tool calls {VERSION}/{split}/{seed}/{group}")
    tools = library(split)
    file = _file(rng)
    talk = _talk(rng, file)
    kind = rng.choices(("call", "next", "done", "chat"), (50, 20, 15, 15))[0]
    if kind == "chat":
        ask, answer = rng.choice(CHATS)
        lists = [_tool_list(rng, tools, None, [], True) for _ in range(LISTS)]
        output = ANSWER.format(answer=answer.format(file=file))
        return [(_instruction(rng, used, talk, ask, ""), output) for used in lists]
    task, later = _task(rng, split), _task(rng, split)
    ask, trace, fixed = task.ask, "", []
    if kind == "next" or (kind == "call" and rng.random() < 0.3):
        ask = rng.choice(THEN).format(first=task.ask, second=later.ask)
    if kind in ("next", "done"):
        done = rng.choice([tool for tool in tools if tool.serves(task)])
        seen = rng.choice(task.verb.reports) if task.verb.reports else _file(rng)
        trace = f"{CALL.format(name=done.name, given=done.given(task, file))} {seen}\n"
        fixed = [done]
        if kind == "next":
            file = file if task.verb.reports else seen
            task = later
    members = []
    for _ in range(LISTS):
        served = rng.random() < 0.8
        used = _tool_list(rng, tools, task, fixed, served and kind != "done")
        if kind == "done":
            what = "The answer is" if task.verb.reports else "The new picture is"
            output = ANSWER.format(answer=f"{what}: {seen}")
        else:
            right = [tool for tool in used if tool.serves(task)]
            output = ANSWER.format(answer=MISSING)
            if right:
                call = CALL.format(name=right[0].name, given=right[0].given(task, file))
                output = f"{call}\n"
        members.append((_instruction(rng, used, talk, ask, trace), output))
    return members


def _tool_list(
    rng: Random, tools: tuple[Tool, ...], task: Task | None, fixed: list[Tool], served: bool
) -> list[Tool]:
    """Two to five tools, `fixed` among them. Of the others one serves the task, or none does.

    The distractors are near misses first: the same verb for other objects, other verbs for the
    same object.
    """
    size = rng.randint(2, 5)
    used = list(fixed)
    if task is not None:
        if served and not any(tool.serves(task) for tool in used):
            used.append(rng.choice([tool for tool in tools if tool.serves(task)]))
        wrong = [tool for tool in tools if not tool.serves(task)]
        near = [tool for tool in wrong if tool.verb is task.verb or tool.object == task.object]
    else:
        wrong = near = list(tools)
    while len(used) < size:
        tool = rng.choice(near if rng.random() < 0.5 else wrong)
        if tool not in used:
            used.append(tool)
    rng.shuffle(used)
    return used


def _task(rng: Random, split: str) -> Task:
    i, j = rng.choice(_pairs(split == "unseen"))
    verb, what = VERBS[i], OBJECTS[j]
    extra = rng.choice(verb.extras) if verb.extras else ""
    text = "" if verb.image else f"{rng.choice(KINDS)} {what} {rng.choice(PLACES)}"
    ask = rng.choice(verb.asks).format(o=what, x=extra, t=text)
    return Task(verb, what, extra, text, ask)


def _talk(rng: Random, file: str) -> str:
    some = [f"{rng.choice(('some', 'two', 'many'))} {what}" for what in rng.sample(OBJECTS, 2)]
    return rng.choice(TURNS).format(file=file, caption=" and ".join(some))


def _file(rng: Random) -> str:
    letters = "".join(rng.choices(ascii_lowercase, k=4))
    return f"{rng.choice(('image', 'cache', 'pictures'))}/{letters}.png"


def _instruction(rng: Random, tools: list[Tool], talk: str, ask: str, trace: str) -> str:
    lines = "".join(tool.line(rng) for tool in tools)
    rules = RULES.format(names=", ".join(tool.name for tool in tools))
    turn = f"Previous conversation:\n\n{talk}\nNew input: {ask}\n"
    return PREAMBLE + lines + rules + turn + SUFFIX + trace
