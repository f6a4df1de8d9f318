"""Reads the texts of tool calls, independently of their generator."""

import functools
import re

from lorage_jax.data.gpt4tools import THOUGHT
from lorage_jax.world.tools_texts import CHATS, MISSING, OBJECTS, VERBS

VERB_OF = {word.lower(): verb for verb in VERBS for word in verb.words}
LINE = re.compile(r"^> (?P<name>.+): (?P<does>.+\.) (?P<how>.+)\.$", re.MULTILINE)
FORM = re.compile(r"\S*name\.png(, \w+)?\]?")


def parts_of(name: str):
    """(verb, object) of a tool name in any dialect.

    This and the next functions read the texts, independently of the generator.
    """
    words = re.split(r"[ _.]", name.lower())
    assert len(words) == 2, name
    (what,) = set(words) & set(OBJECTS)
    words.remove(what)
    return VERB_OF[words[0]], what


def listed(static: str):
    """{(verb, object): (name, form of the input)}, as the tool list has it."""
    lines = LINE.findall(static)
    found = {parts_of(name): (name, FORM.search(how)[0]) for name, _, how in lines}
    assert len(found) == len(lines)
    return found


def _request(verb, asked: str):
    pattern = re.escape(asked).replace(r"\{o\}", rf"(?P<o>{'|'.join(OBJECTS)})")
    pattern = pattern.replace(r"\{x\}", f"(?P<x>{'|'.join(verb.extras)})")
    return re.compile(pattern, re.IGNORECASE)


REQUESTS = [(verb, _request(verb, asked)) for verb in VERBS for asked in verb.asks]


@functools.cache
def wants(ask: str):
    """(verb, object, extra) of one request, read back from its wording."""
    found = {
        (verb, match["o"], match.groupdict().get("x", ""))
        for verb, pattern in REQUESTS
        if (match := pattern.fullmatch(ask))
    }
    assert len(found) == 1, ask
    return found.pop()


def read(dynamic: str):
    """The request for the next step: (kind, (verb, object, extra), file)."""
    turn, mark, trace = dynamic.partition(THOUGHT)
    ask = turn.split("New input: ")[1].strip()
    if ask in dict(CHATS):
        return "chat", None, None
    first, file, then = re.fullmatch(r"(.+) in (\w+\.png)(?:, then (.+))?\.", ask).groups()
    if not mark:
        assert then is None
        return "request", wants(first), file
    seen = trace.split("Observation: ")[1].strip()
    if then is None:
        return "done", None, seen
    return "next", wants(then), seen if seen.endswith(".png") else file


def solve(static: str, dynamic: str) -> str:
    """The right output, derived from the texts alone."""
    kind, want, file = read(dynamic)
    no = f"{THOUGHT} No\nAI: {{}}\n"
    if kind == "chat":
        return no.format(dict(CHATS)[dynamic.split("New input: ")[1].strip()])
    if kind == "done":
        return no.format(f"The result is {file}.")
    verb, what, extra = want
    if (verb, what) not in listed(static):
        return no.format(MISSING)
    name, form = listed(static)[verb, what]
    given = form.replace("name.png", file)
    given = given.replace(f", {verb.extra}", f", {extra}") if extra else given
    return f"{THOUGHT} Yes\nAction: {name}\nAction Input: {given}\nObservation:\n"


def style(text: str):
    """The dialect of a call: its word, the pattern of its name and of its input."""
    match = re.search(r"Action: (.+)\nAction Input: (.+)\n", text)
    if match is None:
        return "none" if MISSING in text else "reply"
    name, given = match.groups()
    verb, what = parts_of(name)
    word = next(w for w in verb.words if w.lower() in re.split(r"[ _.]", name.lower()))
    looks = name.replace(word, "V").replace(word.lower(), "v")
    looks = looks.replace(what.capitalize(), "O").replace(what, "o")
    return verb.words.index(word), looks, re.sub(r"\w+\.png(, \w+)?", "*", given)
