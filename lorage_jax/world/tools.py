"""Tool calls in the format of GPT4Tools, over a library of verbs x objects.

A system prompt lists 2 to 5 tools of one provider, all written in one dialect, which decides the
word for a verb (one of three), how names are composed and how an input is written. A request names
the work, an object and a file, but neither dialect nor tools. The right call can therefore be known
only from the prompt, and so can whether there is one: a quarter of the requests ask for something
that no listed tool does, in the same wordings. `blind_ceiling` gives the share of answers that can
be right without the prompt.

Splits: `train`; `paraphrase`, seen tools in unseen wordings; `unseen`, held-out pairs of a verb
and an object, each seen in other pairs, in seen wordings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

from lorage_jax.data.records import Row
from lorage_jax.errors import DataError
from lorage_jax.world import tools_texts as say
from lorage_jax.world.tools_texts import MISSING, OBJECTS, VERBS, Verb, wording

SPLITS = ("train", "paraphrase", "unseen")

# Increase when the drawn data change: results name their data by split, size and seed.
VERSION = 2

PATTERNS = ("{Verb} {Objects}", "{Objects} {Verb}", "{verb}_{objects}", "{objects}.{verb}")
INPUTS = ("image/{}", "file={}", "[{}]")
# Kinds of turns and their shares: a request, small talk, the end of a request, the second half of
# a longer one.
KINDS = {"request": 0.8, "chat": 0.1, "done": 0.05, "next": 0.05}
SERVED = 0.75  # share of requests that a listed tool can serve
LACKING = 3  # tools that a prompt lacks and its users ask for


@dataclass(frozen=True)
class Tool:
    """One entry of the library; its name depends on the dialect."""

    verb: Verb
    object: str


@dataclass(frozen=True)
class Task:
    """A user's wish: the work of a tool, with a further argument if its verb takes one."""

    tool: Tool
    extra: str
    ask: str


@dataclass(frozen=True)
class Dialect:
    """The way that all names and inputs of one prompt are written."""

    word: int
    pattern: str
    input: str

    def name(self, tool: Tool) -> str:
        """The tool's name in this dialect, in the list and in a call."""
        word, what = tool.verb.words[self.word], tool.object
        return self.pattern.format(
            Verb=word, Objects=what.capitalize(), verb=word.lower(), objects=what
        )

    def given(self, file: str, extra: str) -> str:
        """An input in this dialect; given placeholders, the form of an input."""
        return self.input.format(f"{file}, {extra}" if extra else file)

    def call(self, task: Task, file: str) -> str:
        """The call, up to the observation, which the model does not write."""
        return say.CALL.format(
            name=self.name(task.tool), given=self.given(f"{file}.png", task.extra)
        )


DIALECTS = tuple(Dialect(*parts) for parts in product(range(3), PATTERNS, INPUTS))


@dataclass(frozen=True)
class Turn:
    """One turn of a user, before any prompt decides how it is answered.

    Attributes:
        ask: the request.
        file: the file to work on, without its ending.
        reply: the answer under every prompt; None asks for a call for `task` if a tool serves it.
        task: the work that is asked for.
        before: work that was called for already, on the file `start`.
        seen: the observation of that call.
    """

    ask: str
    file: str = ""
    reply: str | None = None
    task: Task | None = None
    before: Task | None = None
    start: str = ""
    seen: str = ""

    def user(self, dialect: Dialect) -> str:
        """The dynamic part; an earlier call in it is written in the prompt's dialect."""
        trace = f"{dialect.call(self.before, self.start)} {self.seen}\n" if self.before else ""
        return say.TURN.format(ask=self.ask) + trace

    def target(self, dialect: Dialect, served: bool) -> str:
        """The right output."""
        if self.reply is not None or self.task is None or not served:
            return say.REPLY.format(answer=self.reply or MISSING)
        return f"{dialect.call(self.task, self.file)}\n"


@dataclass(frozen=True)
class ToolPrompt:
    """A system prompt with its dialect and tools; `draw(rng)` gives (user text, right output)."""

    system: str
    dialect: Dialect
    tools: tuple[Tool, ...]
    draw: Callable[[Random], tuple[str, str]]


@cache
def library(split: str) -> tuple[Tool, ...]:
    """The tools of a split, for lists and requests. Raises DataError for an unknown split."""
    if split not in SPLITS:
        raise DataError(f"tool calls have no split {split!r}; expected {', '.join(SPLITS)}.")
    every = ((i, j) for i in range(len(VERBS)) for j in range(len(OBJECTS)))
    # A quarter of the tools of each verb, and of each object, is held out.
    kept = [(i, j) for i, j in every if ((3 * i + j) % 4 == 0) == (split == "unseen")]
    return tuple(Tool(VERBS[i], OBJECTS[j]) for i, j in kept)


def draw_prompt(split: str, rng: Random) -> ToolPrompt:
    """Draws a prompt of a split: dialect, tools, wordings, and the tools that it lacks."""
    dialect = rng.choice(DIALECTS)
    tools, lacking = _tools(split, rng)
    return _prompt(_system(split, dialect, tools, rng), dialect, tools, lacking)


def find(system: str) -> ToolPrompt | None:
    """Recognises a prompt, in any wordings, by its list of tools of the library in one dialect.

    The tools that it lacks are drawn anew. Returns None for any other text.
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
    """Draws `n` rows {instruction, input, output, id}, each under a prompt of its own.

    A longer draw begins with the shorter one. Raises DataError for an unknown split or `n` < 1.
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


def blind_ceiling(split: str) -> float:
    """Highest expected exact match without the prompt, for an answerer that sees the dynamic part.

    It is the largest posterior probability of one output, averaged over seeded turns of each kind.
    """
    rng, turns, total = Random(f"blind {VERSION}/{split}"), 100, 0.0
    for kind, share in KINDS.items():
        for _ in range(turns):
            # Turns are distributed alike whether served or not: see `_tools`.
            turn = _turn(kind, rng.random() < SERVED, *_tools(split, rng), rng)
            masses = posterior(turn, turn.user(rng.choice(DIALECTS)))
            total += share * max(masses.values()) / turns
    return total


def posterior(turn: Turn, user: str) -> dict[str, float]:
    """P(right output | dynamic part) over random prompts, by output.

    All dialects are equally likely unless an earlier call in the turn shows the dialect; every
    request is served with probability `SERVED`.
    """
    able = [dialect for dialect in DIALECTS if turn.user(dialect) == user]
    masses: dict[str, float] = defaultdict(float)
    for dialect in able:
        masses[turn.target(dialect, True)] += SERVED / len(able)
        masses[turn.target(dialect, False)] += (1 - SERVED) / len(able)
    return dict(masses)


def _tools(split: str, rng: Random) -> tuple[list[Tool], list[Tool]]:
    """Draws the two to five tools of a prompt, and `LACKING` others that its users ask for too.

    Most tools share their verb or object with another one, so both have to be read. All are drawn
    alike and then shuffled, so that neither a request nor its sequel shows by itself whether a tool
    serves it.
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
    # The next call works on the new image, or on the old one if the first call only looked.
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
