"""Records in the format of GPT4Tools over a tool library of our own: verbs x objects.

A system prompt is a provider's list of 2 to 5 tools, and everything in it is written in one
dialect: which of three words a verb goes by, how names are put together, how an input is written.
A request names a verb's work, an object and a file, but neither dialect nor tools. So the right
call stands in the prompt alone, and whether there is one: a quarter of the requests is for what
no tool of the list does, and their wording does not tell. `blind_ceiling` says how many answers
can be right without the prompt.

Splits: `train`; `paraphrase`, seen tools in unseen wordings; `unseen`, held-out pairs of a verb
and an object that are both seen in others, in seen wordings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

from lorage_jax.data.gpt4tools import to_tool_records
from lorage_jax.data.records import Row
from lorage_jax.errors import DataError
from lorage_jax.world import tools_texts as say
from lorage_jax.world.tools_texts import MISSING, OBJECTS, VERBS, Verb, wording

SPLITS = ("train", "paraphrase", "unseen")

# Raise it when drawn data change: results name the data by split, size and seed.
VERSION = 2

PATTERNS = ("{Verb} {Objects}", "{Objects} {Verb}", "{verb}_{objects}", "{objects}.{verb}")
INPUTS = ("image/{}", "file={}", "[{}]")
# Turns: a request, small talk, the end of a request, and the second half of a longer one.
KINDS = {"request": 0.8, "chat": 0.1, "done": 0.05, "next": 0.05}
SERVED = 0.75
LACKING = 3  # things that users of a prompt ask for in vain


@dataclass(frozen=True)
class Tool:
    """One entry of the library. What it is called is the dialect's."""

    verb: Verb
    object: str


@dataclass(frozen=True)
class Task:
    """What a user wants: a tool's work, with the further argument if its verb has one."""

    tool: Tool
    extra: str
    ask: str


@dataclass(frozen=True)
class Dialect:
    """How all names and inputs of one prompt are written."""

    word: int
    pattern: str
    input: str

    def name(self, tool: Tool) -> str:
        """Of the tool, in the list and in a call."""
        word, what = tool.verb.words[self.word], tool.object
        return self.pattern.format(
            Verb=word, Objects=what.capitalize(), verb=word.lower(), objects=what
        )

    def given(self, file: str, extra: str) -> str:
        """An input, or with placeholders the form of one."""
        return self.input.format(f"{file}, {extra}" if extra else file)

    def call(self, task: Task, file: str) -> str:
        """Up to the observation, which is not the model's."""
        return say.CALL.format(
            name=self.name(task.tool), given=self.given(f"{file}.png", task.extra)
        )


DIALECTS = tuple(Dialect(*parts) for parts in product(range(3), PATTERNS, INPUTS))


@dataclass(frozen=True)
class Turn:
    """What a user wants of some prompt, before the prompt has a say in how it is answered.

    `reply` is what any prompt answers; None means a call for `task`, if a tool serves it.
    """

    ask: str
    file: str = ""
    reply: str | None = None
    task: Task | None = None
    before: Task | None = None  # has been called, with `start`
    start: str = ""
    seen: str = ""

    def user(self, dialect: Dialect) -> str:
        """The dynamic part; a call that has been made is in the prompt's dialect."""
        trace = f"{dialect.call(self.before, self.start)} {self.seen}\n" if self.before else ""
        return say.TURN.format(ask=self.ask) + trace

    def target(self, dialect: Dialect, served: bool) -> str:
        """The right output."""
        if self.reply is not None or self.task is None or not served:
            return say.REPLY.format(answer=self.reply or MISSING)
        return f"{dialect.call(self.task, self.file)}\n"


@dataclass(frozen=True)
class ToolPrompt:
    """A system prompt, what it is made of, and `draw(rng)` for (user text, right output)."""

    system: str
    dialect: Dialect
    tools: tuple[Tool, ...]
    draw: Callable[[Random], tuple[str, str]]


@cache
def library(split: str) -> tuple[Tool, ...]:
    """What tools and requests of a split can be about. DataError for an unknown one."""
    if split not in SPLITS:
        raise DataError(f"tool calls have no split {split!r}; expected {', '.join(SPLITS)}.")
    every = ((i, j) for i in range(len(VERBS)) for j in range(len(OBJECTS)))
    # A quarter of each verb's tools, and of each object's, is held out.
    kept = [(i, j) for i, j in every if ((3 * i + j) % 4 == 0) == (split == "unseen")]
    return tuple(Tool(VERBS[i], OBJECTS[j]) for i, j in kept)


def draw_prompt(split: str, rng: Random) -> ToolPrompt:
    """A prompt of the split: its dialect, tools, wordings, and what users miss in it."""
    dialect = rng.choice(DIALECTS)
    tools, lacking = _tools(split, rng)
    return _prompt(_system(split, dialect, tools, rng), dialect, tools, lacking)


def find(system: str) -> ToolPrompt | None:
    """The prompt that a text is, in any wordings: it lists tools of the library in one dialect.

    What users of it ask for in vain is drawn anew. None for any other text.
    """
    listed = dict(re.findall(r"^> (.+?): (.+)$", system, re.MULTILINE))
    every = [tool for split in ("train", "unseen") for tool in library(split)]
    for dialect in DIALECTS:
        named = {dialect.name(tool): tool for tool in every}
        if not 2 <= len(listed) <= 5 or not listed.keys() <= named.keys():
            continue
        tools = [named[name] for name in listed]
        forms = [dialect.given("name.png", tool.verb.extra) for tool in tools]
        if all(form in told for form, told in zip(forms, listed.values(), strict=True)):
            rng = Random(f"lacking {VERSION}/{system}")
            rest = [tool for tool in every if tool not in tools]
            return _prompt(system, dialect, tools, rng.sample(rest, LACKING))
    return None


def _prompt(system: str, dialect: Dialect, tools: list[Tool], lacking: list[Tool]) -> ToolPrompt:
    def draw(rng: Random) -> tuple[str, str]:
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        served = rng.random() < SERVED
        turn = _turn(kind, served, tools, lacking, rng)
        return turn.user(dialect), turn.target(dialect, served)

    return ToolPrompt(system, dialect, tuple(tools), draw)


def draw(split: str, n: int, seed: int) -> list[Row]:
    """`n` rows {instruction, input, output, id}, each under another prompt.

    A longer draw begins with the shorter one.
    """
    library(split)
    if n < 1:
        raise DataError(f"{n} tool calls were asked for; expected 1 or more.")
    rows = []
    for i in range(n):
        rng = Random(f"tool calls {VERSION}/{split}/{seed}/{i}")
        prompt = draw_prompt(split, rng)
        user, target = prompt.draw(rng)
        row = {"instruction": prompt.system + user, "input": "", "output": target}
        rows.append({**row, "id": f"{split}-{seed}-{i}"})
    return rows


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


def blind_ceiling(split: str) -> float:
    """Expected exact match of the best answerer that sees the dynamic part, but no prompt.

    The largest posterior mass of one output, averaged over seeded turns of every kind.
    """
    rng, turns, total = Random(f"blind {VERSION}/{split}"), 100, 0.0
    for kind, share in KINDS.items():
        for _ in range(turns):
            # Served or not, a turn's distribution is the same: see `_tools`.
            turn = _turn(kind, rng.random() < SERVED, *_tools(split, rng), rng)
            masses = posterior(turn, turn.user(rng.choice(DIALECTS)))
            total += share * max(masses.values()) / turns
    return total


def posterior(turn: Turn, user: str) -> dict[str, float]:
    """P(right output | dynamic part) over random prompts.

    All dialects are as likely, but a call that has been made may tell; `SERVED` holds for every
    request, whatever it is.
    """
    able = [dialect for dialect in DIALECTS if turn.user(dialect) == user]
    masses: dict[str, float] = defaultdict(float)
    for dialect in able:
        masses[turn.target(dialect, True)] += SERVED / len(able)
        masses[turn.target(dialect, False)] += (1 - SERVED) / len(able)
    return dict(masses)


def _tools(split: str, rng: Random) -> tuple[list[Tool], list[Tool]]:
    """Two to five tools of a prompt, and `LACKING` others that are asked for in vain.

    Most have their verb or object in common with another, so both have to be read. As all are
    drawn alike and shuffled, no request, and no second one after a first, tells by itself whether
    a tool serves it.
    """
    tools, size = library(split), rng.randint(2, 5)
    some, others = [], list(tools)
    verbs, objects = set(), set()
    while len(some) < size + LACKING:
        near = [tool for tool in others if tool.verb in verbs or tool.object in objects]
        tool = rng.choice(near if near and rng.random() < 0.9 else others)
        some.append(tool)
        others = [other for other in others if other is not tool]
        verbs.add(tool.verb)
        objects.add(tool.object)
    rng.shuffle(some)
    return some[:size], some[size:]


def _turn(kind: str, served: bool, tools: list[Tool], lacking: list[Tool], rng: Random) -> Turn:
    if kind == "chat":
        ask, reply = rng.choice(say.CHATS)
        return Turn(ask, reply=reply)
    file, new = rng.sample(say.FILES, 2)
    if kind == "request":
        task = _task(rng.choice(tools if served else lacking), rng)
        return Turn(_sentence(f"{task.ask} in {file}.png"), file, task=task)
    tool = rng.choice(tools)
    first = _task(tool, rng)
    reports = tool.verb.reports
    seen = rng.choice(reports) if reports else f"{new}.png"
    ask = f"{first.ask} in {file}.png"
    if kind == "done":
        reply = say.DONE.format(seen=seen)
        return Turn(_sentence(ask), file, reply, before=first, start=file, seen=seen)
    rest = [other for other in tools if other != tool]
    task = _task(rng.choice(rest if served else lacking), rng)
    ask = _sentence(f"{ask}, then {task.ask}")
    # What was made is worked on; what was only looked at is as it was.
    return Turn(ask, file if reports else new, None, task, first, file, seen)


def _task(tool: Tool, rng: Random) -> Task:
    extra = rng.choice(tool.verb.extras) if tool.verb.extras else ""
    return Task(tool, extra, rng.choice(tool.verb.asks).format(o=tool.object, x=extra))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _system(split: str, dialect: Dialect, tools: list[Tool], rng: Random) -> str:
    def some(wordings: say.Wordings) -> str:
        return wording(wordings, split, rng)

    preamble = say.PREAMBLE.format(
        who=some(say.WHO), sight=some(say.SIGHT), names=some(say.NAMES), offer=some(say.OFFER)
    )
    lines = []
    for tool in tools:
        lead = some(say.LEAD).format(do=some(tool.verb.does).format(o=tool.object))
        given = some(say.INPUT).format(form=dialect.given("name.png", tool.verb.extra))
        lines.append(f"> {dialect.name(tool)}: {lead} {given}\n")
    rules = say.RULES.format(
        use=some(say.USE),
        action=some(say.ACTION),
        tools=", ".join(dialect.name(tool) for tool in tools),
        given=some(say.GIVEN),
        result=some(say.RESULT),
        answer=some(say.ANSWER),
        says=some(say.SAYS),
        none=some(say.NONE),
        missing=MISSING,
        last=some(say.LAST),
    )
    return preamble + "".join(lines) + rules
