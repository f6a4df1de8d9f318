"""Splitting the instructions of GPT4Tools: the real format sample, corners, errors."""

import gzip
import json

import pytest
from transformers import AutoTokenizer

from lorage_jax.data.gpt4tools import read_tool_records, split_instruction, to_tool_records
from lorage_jax.errors import DataError

SAMPLE = "data/tool_use/gpt4tools_format_sample_magicbrush_261.jsonl.gz"

PARTS = {
    "preamble": "Helper knows pictures.\nTOOLS:\n------\n\nHelper has these tools:\n\n",
    "tools": "> Find Cats: finds cats. Give a path\n> Say It: reads: aloud. Give a text\n",
    "rules": "\nFormat:\n\n```\nThought: Do I need to use a tool? Yes\n"
    "Action: one of [Find Cats, Say It]\nAction Input: x\nObservation: y\n```\n\n"
    "Else:\n\n```\nThought: Do I need to use a tool? No\n"
    "AI: [your response here]\n```",
    "files": "\n\nKeep file names.\n\n",
    "conversation": "Previous conversation:\n\nHuman: See image/a.png.\nAI: Received.\n\n",
    "request": "New input: find the cats\n",
    "suffix": "Helper looks at pictures through tools. Let's think step by step.\n",
    "trace": "Thought: Do I need to use a tool? Yes\nAction: Find Cats\nAction Input: image/a.png\n"
    "Observation: image/b.png\n",
}


def split(**changes):
    """The parts found in the text of PARTS, with some of them changed."""
    instruction = split_instruction("".join((PARTS | changes).values()), "here")
    return vars(instruction)


@pytest.fixture(scope="module")
def sample(shared):
    return read_tool_records(shared / SAMPLE)


def test_every_part_is_found():
    assert split() == PARTS


@pytest.mark.parametrize(
    "changes",
    [
        {"trace": ""},
        {"suffix": "", "trace": ""},
        {"suffix": ""},
        {"conversation": "Previous conversation:\n\n\n\n"},
        {"request": "New input: find\n\n> the cats: all\nPrevious conversation:\nNew input: x\n"},
        {"request": "New input: think step by step.\n", "suffix": ""},
        {"request": "New input: run\n```\ncode\n```\n"},
        {"request": "New input: two lines\nand no suffix.\n", "suffix": "", "trace": ""},
        {"trace": PARTS["trace"] * 2},
        {"trace": PARTS["trace"] + "New input: made up\nPrevious conversation:\n"},
        {"preamble": ""},
        {"tools": "> One: tool\n"},
        {"request": "New input: Zebra-Straße 斑馬\r\n"},
    ],
    ids=lambda changes: f"{changes}"[:60],
)
def test_parts_that_look_like_others(changes):
    assert split(**changes) == PARTS | changes


def test_what_goes_where():
    instruction = split_instruction("".join(PARTS.values()), "here")
    assert instruction.text == "".join(PARTS.values())
    assert instruction.tool_names == ("Find Cats", "Say It")
    for text, names in {
        instruction.static: ("preamble", "tools", "rules", "files", "suffix"),
        instruction.dynamic: ("conversation", "request", "trace"),
        instruction.without_tools: tuple(name for name in PARTS if name != "tools"),
    }.items():
        assert text == "".join(PARTS[name] for name in names)
    assert "[Find Cats, Say It]" in instruction.without_tools


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("tools", "no line `> tool name: description`"),
        ("rules", "no format rules"),
        ("conversation", "no line `Previous conversation:`"),
        ("request", "no line `New input: ...`"),
    ],
)
def test_a_missing_part_is_named(part, message, tmp_path):
    good = {"instruction": "".join(PARTS.values()), "input": "", "output": "x", "id": "one"}
    bad = good | {"instruction": "".join((PARTS | {part: ""}).values()), "id": "two"}
    path = tmp_path / "test.json"
    path.write_text(json.dumps([good, bad]), "utf-8")
    with pytest.raises(DataError) as error:
        read_tool_records(path)
    assert f"{path}: item 2 (id two)" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": ""}, "output is empty"),
        ({"instruction": None}, "instruction is null"),
        ({"input": "more"}, "input is not empty"),
    ],
)
def test_a_record_of_another_kind_is_refused(change, message):
    row = {"instruction": "".join(PARTS.values()), "input": "", "output": "x", "id": 7}
    with pytest.raises(DataError, match=message):
        to_tool_records([row, row | change])
    with pytest.raises(DataError, match="record 2"):
        to_tool_records([row, row | change])


def test_json_lines_and_arrays_are_the_same(tmp_path):
    rows = [
        {"instruction": "".join(PARTS.values()), "input": "", "output": f"AI: {i}", "id": f"r{i}"}
        for i in range(3)
    ]
    del rows[2]["id"], rows[2]["input"]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    read = [
        read_tool_records(tmp_path / name)
        for name in ("a.json", "a.jsonl", "a.jsonl.gz", "a.json.gz")
    ]
    for records in read:
        assert [record.output for record in records] == ["AI: 0", "AI: 1", "AI: 2"]
        assert [record.id for record in records] == ["r0", "r1", "3"]


def test_the_tools_that_the_gold_output_calls():
    row = {"instruction": "".join(PARTS.values()), "output": "Action: Say It \nAction Input: hi"}
    assert to_tool_records([row])[0].called == ("Say It",)


def test_the_real_sample_splits_and_joins(sample, shared):
    with gzip.open(shared / SAMPLE, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(sample) == len(rows) == 261
    for number, (record, row) in enumerate(zip(sample, rows, strict=True), start=1):
        parts = record.instruction
        assert parts.text == row["instruction"]
        assert (record.output, record.id) == (row["output"], str(number))  # it has no ids
        assert parts.preamble.startswith("GPT4Tools can") and parts.preamble.endswith("tools:\n\n")
        assert 2 <= len(parts.tool_names) <= 5
        assert f"[{', '.join(parts.tool_names)}]" in parts.rules
        assert parts.files.strip().endswith("observation.")
        assert parts.conversation.count("Human: Provide an image") == 1
        assert parts.request.count("\n") == 1
        assert parts.suffix.startswith("GPT4Tools needs")
        assert bool(parts.trace) == ("Observation: " in row["instruction"].split("New input: ")[1])
        assert set(record.called) <= set(parts.tool_names)
    assert sum(bool(record.instruction.trace) for record in sample) == 132


@pytest.mark.parametrize(
    ("name", "tools", "static"), [("llama2", 1.582, 6.307), ("qwen2", 1.634, 6.939)]
)
def test_compression(sample, shared, name, tools, static):
    """The ratio of all tokens to edge tokens, in both variants."""
    tokenizer = AutoTokenizer.from_pretrained(str(shared / "tokenizers" / name))

    def tokens(texts):
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return sum(map(len, rows))

    full = tokens(record.instruction.text for record in sample)
    assert full / tokens(r.instruction.without_tools for r in sample) == pytest.approx(
        tools, abs=1e-3
    )
    assert full / tokens(r.instruction.dynamic for r in sample) == pytest.approx(static, abs=1e-3)
