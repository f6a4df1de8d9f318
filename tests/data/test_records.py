import gzip
import io
import json

import pytest

from lorage_jax.data.records import Record, Skipped, read_rows, read_text, to_record
from lorage_jax.errors import DataError

ROW = {"system": "s", "user": "u", "target": "t"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_json_lines_plain_and_gzipped(tmp_path, name):
    path = tmp_path / name
    second = json.dumps({"a": "b\u2028c"}, ensure_ascii=False)
    data = f"\ufeff{json.dumps(ROW)}\r\n\n{second}\n".encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    # Blank lines are skipped but counted: the place is the line of the file.
    assert read_rows(path) == [(f"{path}:1", ROW), (f"{path}:3", {"a": "b\u2028c"})]


def test_json_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW, ROW], indent=2))
    assert read_rows(path) == [(f"{path}: item 1", ROW), (f"{path}: item 2", ROW)]


GOOD = json.dumps(ROW).encode() + b"\n"
BAD_FILES = {
    "malformed": ("a.jsonl", GOOD + b'{"system": \n', r"a\.jsonl:2: is not JSON"),
    "not an object": ("a.jsonl", GOOD + b"\n[1]\n", r"a\.jsonl:3: is a list"),
    "list first": ("a.jsonl", b"[1]\n" + GOOD, r"a\.jsonl:1: is a list"),
    "null": ("a.jsonl", b"null\n", r"a\.jsonl:1: is null"),
    "not UTF-8": ("a.jsonl", GOOD + b'{"system": "\xff"}\n', r"a\.jsonl:2: is not UTF-8"),
    "deep": ("a.jsonl", b'{"a":' + b"[" * 200_000, r"a\.jsonl:1: is not JSON"),
    "empty": ("a.jsonl", b" \n", "a.jsonl: holds no rows"),
    "empty array": ("a.json", b"[]", "a.json: holds no rows"),
    "array item": ("a.json", b'[{"a": 1},\n 3]', r"a\.json: item 2: is a number"),
    "cut array": ("a.json", b'[{"a": 1},\n {"a"', r"a\.json:2: is not a JSON array"),
    "array not UTF-8": ("a.json", b'[{"a": 1},\n "\xff"]', r"a\.json:2: is not UTF-8"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(GOOD * 99)[:-9], "a.jsonl.gz: broken or cut-off"),
    "not gzip": ("a.jsonl.gz", GOOD, "a.jsonl.gz: broken or cut-off gzip"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_name_file_and_line(tmp_path, case):
    name, data, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path)


def _chat(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def _part(text, kind="text"):
    return {"type": kind, "text": text}


def _turn(role, text):
    return {"from": role, "value": text}


def _weighted(weight):
    user = {"role": "user", "content": "u", "weight": 0}  # only answers have a loss
    return [user, {"role": "assistant", "content": "t", "weight": weight}]


@pytest.mark.parametrize(
    "row",
    [
        {**ROW, "id": 3},
        {"instruction": "s", "input": "u", "output": "t"},
        {"instruction": "s", "input": "u", "output": "t", "system": None},
        {"instruction": "s", "input": "u", "output": "t", "system": " "},
        {"system": "s", "instruction": "u", "input": None, "output": "t"},
        {"system": "s", "instruction": "u", "output": "t"},
        {"instruction": "kept for reference", **ROW},
        _chat(("system", "s"), ("user", "u"), ("assistant", "t")),
        _chat(("developer", "s"), ("user", "u"), ("assistant", "t")),
        {**_chat(("user", "u"), ("assistant", "t")), "system": "s"},
        {**_chat(("system", "s"), ("user", "u"), ("assistant", "t")), "system": "s "},
        {**_chat(("system", "s"), ("user", "u"), ("assistant", "t")), "system": None},
        _chat(("system", "s"), ("user", [_part("u")]), ("assistant", [_part("t"), _part("")])),
        {"messages": [{"role": "system", "content": "s"}, *_weighted(1)]},
        {"instruction": "s", "input": "u", "output": "t", "history": []},
        {"system": "s", "conversations": [_turn("human", "u"), _turn("gpt", "t")]},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "u"},
                {"from": "gpt", "value": "t"},
            ]
        },
    ],
)
def test_layouts(row):
    assert to_record(row, "f:1") == Record("s", "u", "t")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "s", "input": "", "output": "t"},
        {"instruction": "s", "input": None, "output": "t"},
        {"instruction": "s", "output": "t"},
        {**ROW, "user": None},
    ],
)
def test_an_empty_input_is_a_record(row):
    assert to_record(row, "f:1") == Record("s", row.get("user") or "", "t")


def test_alpacas_instruction_is_the_users_beside_a_system_prompt():
    row = {"system": "s", "instruction": "Sum up.", "input": "A text.", "output": "t"}
    assert to_record(row, "f:1") == Record("s", "Sum up.\nA text.", "t")


def test_the_layout_is_each_rows_own(tmp_path):
    rows = [
        ROW,
        {"instruction": "s", "input": None, "output": "t"},
        _chat(("system", "s"), ("user", "u"), ("assistant", "t")),
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [to_record(row, place) for place, row in read_rows(path)]
    assert [record.user for record in made] == ["u", "", "u"]


def test_bad_rows_are_skipped_on_request_counted_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"instruction": "s", "output": ""}\n{"cut": \n' + GOOD)
    skipped = Skipped(2)
    rows = read_rows(path, skipped)
    made = [skipped.attempt(lambda r=row, p=place: to_record(r, p)) for place, row in rows]
    assert [record is not None for record in made] == [True, False, True]
    assert "2 rows cannot be used and were skipped" in skipped.summary
    assert f"{path}:2" in skipped.summary and f"{path}:3" in skipped.summary
    with pytest.raises(DataError, match=r"a.jsonl:3: is not JSON.*raise skip_bad_rows.*\(0\)"):
        read_rows(path, Skipped(0))
    with pytest.raises(DataError, match=r"a.jsonl:3: is not JSON[^.]*\.$"):
        read_rows(path)
    with pytest.raises(DataError, match=r"It is row 3 that cannot be used.*skip_bad_rows.*\(2\)"):
        skipped.attempt(lambda: to_record({}, "f:9"))
    assert Skipped(3).summary == ""


def test_a_json_file_may_be_one_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROW, indent=2))
    assert read_rows(path) == [(f"{path}:1", ROW)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "s", "input": "u"}, "output is missing; found instruction, input"),
        ({"system": "s", "target": "t"}, "user is missing; found system, target"),
        ({"text": "s"}, r"found the fields text; expected \{system"),
        ({}, "found the fields no fields"),
        ({**ROW, "target": " \n"}, "target is empty"),
        ({**ROW, "system": ""}, "system is empty"),
        ({**ROW, "target": None}, "target is null; expected a string"),
        ({**ROW, "user": ["u"]}, "user is a list"),
        ({**ROW, "target": "\ud800"}, "target contains an unpaired surrogate"),
        (_chat(("user", "u"), ("assistant", "t")), "has the roles user, assistant"),
        (_chat(("system", "s"), ("user", ""), ("assistant", "t")), "user message.*is empty"),
        ({"messages": ["hello"]}, "not a list of objects"),
        (
            {**_chat(("system", "s"), ("user", "u"), ("assistant", "t")), "system": "other"},
            "the field system differs from the system message",
        ),
        ({"system": " ", **_chat(("user", "u"), ("assistant", "t"))}, "the roles user, assistant"),
        ({"system": "s", "messages": _weighted(0)}, r"assistant message.*weight 0.*not supported"),
        (
            _chat(("system", "s"), ("user", [_part("u", "image_url")]), ("assistant", "t")),
            r"user message.*the field content is a list",
        ),
        (
            {"instruction": "s", "output": "t", "history": [["a", "b"]]},
            "the field history is not supported.*messages",
        ),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(DataError, match=rf"(?s)^f:7.*{message}"):
        to_record(row, "f:7")


def test_read_text(tmp_path, monkeypatch):
    path = tmp_path / "prompt.txt"
    path.write_bytes("\n You are é.\r\nBe brief.\r\n".encode())  # as Windows saves it
    assert read_text(path) == "You are é.\nBe brief."
    stdin = io.TextIOWrapper(io.BytesIO("From é.\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert read_text("-") == "From é."


@pytest.mark.parametrize("text", ["You are brief.\nAnswer.\n" * 20, "You are brief. " * 30])
def test_a_text_where_its_file_is_expected_is_not_repeated(text):
    with pytest.raises(DataError) as caught:
        read_text(text)
    message = str(caught.value)
    assert message.startswith("'You are brief.") and len(message) < 220 and "\n" not in message
    assert message.endswith("prompt, not the text itself, or - for standard input.")


def test_read_text_errors(tmp_path, monkeypatch):
    path = tmp_path / "prompt.txt"
    with pytest.raises(DataError, match="no such file"):
        read_text(path)
    path.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="is empty"):
        read_text(path)
    path.write_bytes(b"fine\n\xe9t\xe9")
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        read_text(path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input: is empty"):
        read_text("-")
