"""Generated tool calls: the format, the right output of every list, splits, the blind ceiling."""

import functools
import math
import re
from collections import Counter, defaultdict
from random import Random

import pytest
from transformers import AutoTokenizer

from lorage_jax.data.gpt4tools import THOUGHT, to_tool_records
from lorage_jax.data.records import to_record
from lorage_jax.data.templates import edge_prompt, edge_prompt_with_system, edge_target
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import DataError
from lorage_jax.evaluate.gpt4tools import score
from lorage_jax.world.tools import (
    DIALECTS,
    LACKING,
    SPLITS,
    _tools,
    blind_ceiling,
    draw,
    draw_prompt,
    library,
    to_prompt_records,
)
from lorage_jax.world.tools_texts import CHATS, MISSING, OBJECTS, VERBS

N = 600
MANY = 3000
VERB_OF = {word.lower(): verb for verb in VERBS for word in verb.words}
LINE = re.compile(r"^> (?P<name>.+): (?P<does>.+\.) (?P<how>.+)\.$", re.MULTILINE)
FORM = re.compile(r"\S*name\.png(, \w+)?\]?")


@pytest.fixture(scope="module", params=SPLITS)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def records(split):
    return to_tool_records(draw(split, N, seed=3))


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
    """(verb, object, extra) behind one request, read back from its wording."""
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


def tokenizer_of(rows):
    texts = [
        edge_prompt_with_system(row["system"], row["user"]) + edge_target(row["target"])
        for row in to_prompt_records(rows)
    ]
    return train_tokenizer(texts, 1024, bos=True)


def test_the_splits_share_no_tool_and_every_part_is_seen():
    train, unseen = set(library("train")), set(library("unseen"))
    assert not train & unseen
    assert set(library("paraphrase")) == train
    assert len(train | unseen) == len(VERBS) * len(OBJECTS) == 4 * len(unseen)
    for tool in unseen:
        assert any(other.verb is tool.verb for other in train)
        assert any(other.object == tool.object for other in train)
    words = [word for verb in VERBS for word in verb.words]
    assert len(set(words)) == len(words)


def test_tools_and_requests_are_of_the_split(records, split):
    mine = {(tool.verb, tool.object) for tool in library(split)}
    for record in records:
        instruction = record.instruction
        assert set(listed(instruction.static)) <= mine
        _, want, _ = read(instruction.dynamic)
        assert want is None or want[:2] in mine


def test_the_format(records):
    for record in records:
        instruction = record.instruction
        assert instruction.text == instruction.static + instruction.dynamic
        assert 2 <= len(instruction.tool_names) <= 5
        assert f"[{', '.join(instruction.tool_names)}]" in instruction.rules
        assert instruction.dynamic.startswith("Previous conversation:\n\nNew input: ")
        assert MISSING in instruction.static
        assert set(record.called) <= set(instruction.tool_names)
    assert {len(record.instruction.tool_names) for record in records} == {2, 3, 4, 5}


def test_every_gold_output_scores_full_marks(records):
    for record in records:
        for mode in ("official", "strict"):
            gold = score(record.output, record.output, mode)
            assert list(gold.values()) == pytest.approx([1] * 5, abs=1e-8)


def test_the_prompt_tells_the_right_output(records):
    for record in records:
        assert record.output == solve(record.instruction.static, record.instruction.dynamic)


def test_a_prompt_has_one_dialect_and_there_are_36(records):
    styles = set()
    for record in records:
        static = record.instruction.static
        mine = {
            style(f"Action: {name}\nAction Input: {form}\n")
            for name, form in listed(static).values()
        }
        assert len(mine) == 1
        if record.instruction.trace:
            assert {style(record.instruction.trace)} == mine
        styles |= mine
    assert len(styles) == len(DIALECTS) == 36


def test_the_prompt_decides(split):
    """The same request has many right outputs, but under one prompt only one."""
    rng, outputs, prompts = Random(1), defaultdict(set), []
    for _ in range(1500):
        prompts.append(draw_prompt(split, rng))
        user, target = prompts[-1].draw(rng)
        kind, want, _ = read(user)
        if kind == "request":
            outputs[want[:2]].add(style(target))
        assert target == solve(prompts[-1].system, user)
    assert max(map(len, outputs.values())) > 5
    asked = defaultdict(set)
    for _ in range(40):
        user, target = prompts[0].draw(rng)  # one prompt gives one answer
        asked[user].add(target)
        assert target == solve(prompts[0].system, user)
    assert all(len(targets) == 1 for targets in asked.values())


def test_every_kind_is_there(records):
    kinds = Counter(read(record.instruction.dynamic)[0] for record in records)
    assert kinds["request"] > 0.7 * N
    assert kinds["chat"] > 0.05 * N
    assert min(kinds["done"], kinds["next"]) > 0.02 * N
    given = {r.output.split("Action Input: ")[1].count(",") for r in records if r.called}
    assert given == {0, 1}


def test_most_refusals_are_near_misses(records):
    near = []
    for record in records:
        _, want, _ = read(record.instruction.dynamic)
        if MISSING in record.output:
            tools = listed(record.instruction.static)
            near.append(any(want[0] is verb or want[1] == what for verb, what in tools))
    assert sum(near) > 0.7 * len(near) > 0.1 * N


def test_the_other_wordings_are_other_sentences_of_the_same_words():
    def lines(split):
        """Lines of the system prompts, without the dialect's parts and with objects left open."""
        texts = [draw_prompt(split, Random(i)).system for i in range(MANY // 3)]
        places = r"(?<=one of )\[.+\]|(?<=> )[^:]+(?=:)|\S*name\.png(, \w+)?\]?"
        rows = [re.sub(places, "", text) for text in texts]
        return "\n".join(re.sub("|".join(OBJECTS), "THEM", row) for row in rows)

    train, other, unseen = map(lines, SPLITS)

    def sentences(text):
        parts = re.split(r"(?<=[.:;])\s+|\n|```|(?<=, one of)", text)
        return {part.strip() for part in parts if len(part.split()) > 3}

    need = "Do I need to use a tool?"
    fixed = {f"{need} Yes", f"{need} No", "Let's think step by step.", MISSING}
    assert sentences(train) & sentences(other) == fixed
    assert sentences(unseen) <= sentences(train)
    assert set(re.findall(r"\w+", other)) <= set(re.findall(r"\w+", train))


def test_drawing_is_reproducible_and_extends(split):
    rows = draw(split, 10, seed=1)
    assert rows == draw(split, 10, seed=1)
    assert draw(split, 25, seed=1)[:10] == rows
    others = {row["instruction"] for row in draw(split, 10, seed=2)}
    assert not others & {row["instruction"] for row in rows}
    assert len({row["id"] for row in draw(split, 25, seed=1)}) == 25
    assert list(rows[0]) == ["instruction", "input", "output", "id"]
    one, two = (draw_prompt(split, Random("x")) for _ in range(2))
    assert one.system == two.system and one.draw(Random(1)) == two.draw(Random(1))


def test_bad_requests():
    for ask in (
        blind_ceiling,
        lambda name: draw(name, 1, 0),
        lambda name: draw_prompt(name, Random()),
    ):
        with pytest.raises(DataError, match="train, paraphrase, unseen"):
            ask("test")
    with pytest.raises(DataError, match="1 or more"):
        draw("train", 0, seed=0)


def test_as_training_records():
    rows = draw("train", 12, seed=0)
    for row, prompt in zip(rows, to_prompt_records(rows), strict=True):
        record = to_record(prompt, "here")
        assert "> " in record.system and "New input" not in record.system
        assert record.user.startswith("Previous conversation:")
        assert record.target == row["output"]
        assert record.system + record.user == row["instruction"]


@pytest.fixture(scope="module")
def own_tokenizer():
    return tokenizer_of(draw("train", 1500, seed=0))


@pytest.mark.parametrize(("name", "least"), [("own", 10.5), ("llama2", 8), ("qwen2", 8)])
def test_most_of_it_can_leave_the_edge(request, split, name, least):
    if name == "own":
        tokenizer = request.getfixturevalue("own_tokenizer")
    else:
        folder = request.getfixturevalue("shared") / "tokenizers" / name
        tokenizer = AutoTokenizer.from_pretrained(str(folder))

    def tokens(texts):
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return sum(map(len, rows)) / len(rows)

    rows = to_prompt_records(draw(split, 300, seed=1))
    full = tokens(edge_prompt_with_system(row["system"], row["user"]) for row in rows)
    assert full > least * tokens(edge_prompt(row["user"]) for row in rows)
    if name == "own":
        assert 240 < tokens(row["system"] for row in rows) < 320
        assert 22 < tokens(edge_prompt(row["user"]) for row in rows) < 29


@pytest.fixture(scope="module")
def blind(split):
    """(what a blind answerer sees, the right output) of turns under as many prompts.

    Seen is (kind, the next step's verb and object, those of the step before, its dialect).
    """
    rng, found = Random(f"blind/{split}"), []
    for _ in range(MANY):
        user, target = draw_prompt(split, rng).draw(rng)
        kind, want, _ = read(user)
        before = re.search("Action: (.+)", user)
        what = want and want[:2]
        seen = (kind, what, before and parts_of(before[1]), before and style(user))
        found.append((seen, style(target)))
    return found


def right_blindly(turns, view):
    """Share of right answers of the best constant per `view`, found on the first half."""
    half = len(turns) // 2
    counts = defaultdict(Counter)
    for seen, right in turns[:half]:
        counts[view(seen)][right] += 1
    best = {key: count.most_common(1)[0][0] for key, count in counts.items()}
    return sum(best.get(view(seen)) == right for seen, right in turns[half:]) / (len(turns) - half)


VIEWS = {
    "kind": lambda seen: seen[0],
    "kind and dialect": lambda seen: (seen[0], seen[3]),
    "verb": lambda seen: (seen[0], seen[1] and seen[1][0], seen[3]),
    "object": lambda seen: (seen[0], seen[1] and seen[1][1], seen[3]),
    "tool": lambda seen: (seen[0], seen[1], seen[3]),
    "everything": lambda seen: seen,
}


@pytest.mark.parametrize("view", VIEWS)
def test_no_blind_answerer_is_above_the_ceiling(blind, split, view):
    ceiling = blind_ceiling(split)
    error = math.sqrt(ceiling * (1 - ceiling) / (MANY / 2))
    assert right_blindly(blind, VIEWS[view]) < ceiling + 3 * error


def test_the_ceiling_is_reached(blind, split):
    """By refusing every request and continuing in the dialect of a trace."""

    def guess(seen):
        return {"request": "none", "next": seen[3]}.get(seen[0], "reply")

    share = sum(guess(seen) == right for seen, right in blind) / MANY
    ceiling = blind_ceiling(split)
    assert abs(share - ceiling) < 3 * math.sqrt(ceiling * (1 - ceiling) / MANY)
    assert ceiling == pytest.approx(0.8 * 0.25 + 0.1 + 0.05 + 0.05 * 0.75)


def test_what_is_asked_does_not_tell_whether_it_is_served(blind):
    """By verb, object and both; for second steps, by what they share with the first."""
    asked = [(seen, right == "none") for seen, right in blind if seen[0] in ("request", "next")]
    groups = defaultdict(list)
    for (kind, what, before, _), missing in asked:
        for key in ("all", ("verb", what[0]), ("object", what[1])):
            groups[key].append(missing)
        if kind == "next":
            groups[what[0] is before[0], what[1] == before[1]].append(missing)
    for key, group in groups.items():
        error = math.sqrt(0.25 * 0.75 / len(group))
        assert abs(sum(group) / len(group) - 0.25) < 4 * error, key
    pairs = defaultdict(list)  # too few each for that, but not together
    for (_, what, _, _), missing in asked:
        pairs[what].append(missing)
    squares = [(sum(g) / len(g) - 0.25) ** 2 * len(g) / (0.25 * 0.75) for g in pairs.values()]
    assert sum(squares) / len(squares) < 1 + 4 * math.sqrt(2 / len(squares))


def test_what_is_lacking_is_as_near_to_a_tool_as_the_other_tools(split):
    rng, shares = Random(0), Counter()
    for _ in range(MANY):
        tools, lacking = _tools(split, rng)
        assert len(lacking) == LACKING and not set(tools) & set(lacking)
        for name, other in (("tool", tools[1]), ("lacking", lacking[0]), ("last", lacking[-1])):
            alike = other.verb is tools[0].verb, other.object == tools[0].object
            shares[name, alike] += 1 / MANY
    for name, alike in shares:
        share = shares["tool", alike]
        assert abs(shares[name, alike] - share) < 4 * math.sqrt(2 * share * (1 - share) / MANY)
