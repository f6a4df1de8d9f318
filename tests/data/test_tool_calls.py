"""Generated tool calls: the format, the right tool of every list, splits, and reproducibility."""

import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from lorage_jax.data.gpt4tools import to_tool_records
from lorage_jax.data.records import to_record
from lorage_jax.data.tool_calls import (
    LISTS,
    MISSING,
    OBJECTS,
    SPLITS,
    VERBS,
    draw,
    library,
    to_prompt_records,
)
from lorage_jax.errors import DataError
from lorage_jax.evaluate.gpt4tools import score

N = 600
TOOLS = {tool.name: tool for split in SPLITS for tool in library(split)}
FILES = re.compile(r"\w+/\w+\.png")


@pytest.fixture(scope="module", params=SPLITS)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def records(split):
    return to_tool_records(draw(split, N, seed=3))


def groups(records):
    return [records[i : i + LISTS] for i in range(0, len(records), LISTS)]


def verb_of(ask: str):
    """The verb and object of the one-step request behind `ask`, read back from its wording."""
    found = {
        (verb, what)
        for verb in VERBS
        for pattern in verb.asks
        for what in OBJECTS
        if re.fullmatch(
            re.escape(pattern)
            .replace(r"\{o\}", what)
            .replace(r"\{x\}", ".+")
            .replace(r"\{t\}", rf"\w+ {what} .+"),
            ask,
        )
    }
    assert len(found) <= 1, ask
    return found.pop() if found else None


def steps(record):
    ask = record.instruction.request.removeprefix("New input: ").strip()
    return re.split(" After that: | And when that is done: ", ask)


def test_the_splits_share_no_tool_and_every_part_is_seen():
    train, unseen = (library(name) for name in SPLITS)
    assert not {tool.name for tool in train} & {tool.name for tool in unseen}
    assert len(TOOLS) == len(train) + len(unseen)  # no name twice
    pairs = [{(tool.verb, tool.object) for tool in split} for split in (train, unseen)]
    assert {what for _, what in pairs[0] & pairs[1]} == {"anything"}
    for tool in unseen:
        assert any(other.verb is tool.verb for other in train)
        assert any(other.object == tool.object for other in train)
    assert 5 * len(unseen) > len(train)


def test_tools_and_golds_are_of_the_split(records, split):
    names = {tool.name for tool in library(split)}
    for record in records:
        assert 2 <= len(record.instruction.tool_names) <= 5
        assert len(set(record.instruction.tool_names)) == len(record.instruction.tool_names)
        assert set(record.instruction.tool_names) <= names
        assert f"[{', '.join(record.instruction.tool_names)}]" in record.instruction.rules
        assert set(record.called) <= set(record.instruction.tool_names)


def test_every_gold_output_scores_full_marks(records):
    for record in records:
        for mode in ("official", "strict"):
            gold = score(record.output, record.output, mode)
            assert list(gold.values()) == pytest.approx([1] * 5, abs=1e-8)


def test_the_gold_call_is_the_one_tool_that_serves(records):
    """Told from the texts: which tools of the list do what is asked, to the right file."""
    calls = missing = 0
    for record in records:
        asked = list(map(verb_of, steps(record)))
        if None in asked:
            assert not record.called  # small talk
            continue
        at = 1 if record.instruction.trace else 0
        if at == len(asked):
            assert not record.called  # done
            continue
        verb, what = asked[at]
        right = [
            name
            for name in record.instruction.tool_names
            if TOOLS[name].verb is verb and TOOLS[name].object in (what, "anything")
        ]
        assert len(right) <= 1
        assert list(record.called) == right
        if not right:
            missing += 1
            assert MISSING in record.output
            continue
        calls += 1
        given = record.output.split("Action Input: ")[1].split("\n")[0]
        if verb.image:
            files = FILES.findall(record.instruction.conversation + record.instruction.trace)
            assert given.split(", ")[0] == files[-1]
            assert (TOOLS[right[0]].object == "anything") == (f", {what}" in given)
        else:
            assert given in record.instruction.request
    assert calls > 0.3 * N
    assert missing > 0.05 * N


def test_the_closing_answer_names_what_was_observed(records):
    closing = [
        r for r in records if r.instruction.trace and not r.called and MISSING not in r.output
    ]
    assert len(closing) > 0.05 * N
    for record in closing:
        observed = record.instruction.trace.split("Observation: ")[1].strip()
        assert record.output.rstrip().endswith(observed)


def test_the_tool_list_decides(records):
    """The same turn under other lists: other tools, and often another gold output."""
    asked = 0
    for group in groups(records):
        assert len({record.instruction.dynamic for record in group}) == 1
        assert len({record.instruction.tools for record in group}) == LISTS
        asked += any(record.called for record in group)
    several = [len({record.called for record in group}) > 1 for group in groups(records)]
    assert sum(several) > 0.9 * asked
    no = [{bool(record.called) for record in group} == {True, False} for group in groups(records)]
    assert sum(no) > 0.2 * len(no)


def test_every_kind_is_there(records):
    kinds = Counter((bool(r.instruction.trace), bool(r.called)) for r in records)
    assert all(kinds[kind] > 0.08 * N for kind in [(a, b) for a in (0, 1) for b in (0, 1)])
    assert {len(r.instruction.tool_names) for r in records} == {2, 3, 4, 5}
    inputs = {r.output.split("Action Input: ")[1].count(",") for r in records if r.called}
    assert inputs == {0, 1, 2}


def test_drawing_is_reproducible_and_extends(split):
    rows = draw(split, 10, seed=1)
    assert rows == draw(split, 10, seed=1)
    assert draw(split, 25, seed=1)[:10] == rows
    others = {row["instruction"] for row in draw(split, 10, seed=2)}
    assert not others & {row["instruction"] for row in rows}
    assert len({row["id"] for row in draw(split, 25, seed=1)}) == 25
    assert list(rows[0]) == ["instruction", "input", "output", "id"]


def test_bad_requests():
    with pytest.raises(DataError, match="train, unseen"):
        draw("test", 1, seed=0)
    with pytest.raises(DataError, match="1 or more"):
        draw("train", 0, seed=0)


def test_as_training_records():
    rows = draw("train", 12, seed=0)
    for row, prompt in zip(rows, to_prompt_records(rows), strict=True):
        record = to_record(prompt, "here")
        assert "> " in record.system and "New input" not in record.system
        assert record.user.startswith("Previous conversation:")
        assert record.target == row["output"]
        assert len(record.system) + len(record.user) == len(row["instruction"])


@pytest.mark.parametrize("name", ["llama2", "qwen2"])
def test_most_of_it_can_leave_the_edge(shared, name):
    tokenizer = AutoTokenizer.from_pretrained(str(shared / "tokenizers" / name))
    records = to_tool_records(draw("unseen", 90, seed=0))

    def tokens(texts):
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return sum(map(len, rows))

    full = tokens(record.instruction.text for record in records)
    assert full > 3.5 * tokens(record.instruction.dynamic for record in records)
    assert full > 1.2 * tokens(record.instruction.without_tools for record in records)
