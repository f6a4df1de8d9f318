"""Generated tool calls: the format, the right output of every list, splits."""

import re
from collections import Counter, defaultdict
from random import Random

import pytest
from transformers import AutoTokenizer

from lorage_jax.data.gpt4tools import to_tool_records
from lorage_jax.data.records import to_record
from lorage_jax.data.templates import edge_prompt, edge_prompt_with_system, edge_target
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import DataError
from lorage_jax.evaluate.gpt4tools import score
from lorage_jax.world.tools import (
    DIALECTS,
    SPLITS,
    blind_ceiling,
    draw,
    draw_prompt,
    library,
)
from lorage_jax.world.tools_texts import MISSING, OBJECTS, VERBS
from tests.world.tool_texts import listed, read, solve, style

N = 600
WORDINGS = 1000


@pytest.fixture(scope="module", params=SPLITS)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def records(split):
    return to_tool_records(draw(split, N, seed=3))


def to_prompt_records(rows):
    """Rows as training data: the static part is the system prompt, the rest the user's text."""
    return [
        {
            "system": one.instruction.static,
            "user": one.instruction.dynamic,
            "target": one.output,
        }
        for one in to_tool_records(rows)
    ]


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
        texts = [draw_prompt(split, Random(i)).system for i in range(WORDINGS)]
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
