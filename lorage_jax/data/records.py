"""Reads files into rows, rows into `Record`s, and prompt files. Every error names file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorage_jax.errors import DataError

Row = dict[str, Any]

# The field names of each accepted layout, in the order system, user, target.
LAYOUTS = (("system", "user", "target"), ("instruction", "input", "output"))
ROLES = ("system", "user", "assistant")
EXPECTED = (
    "expected {system, user, target}, {instruction, input, output} "
    "or {messages: [{role, content}, ...]} with roles system, user, assistant"
)


@dataclass(frozen=True)
class Record:
    """One example: the cloud reads `system`, the edge reads `user` and answers with `target`."""

    system: str
    user: str
    target: str


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in `.gz`.

    Raises DataError if it cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken or cut-off gzip file ({error}).") from None


def file_digest(path: str | Path) -> str:
    """Hash of the (unpacked) content of a data file."""
    return "sha256:" + hashlib.sha256(read_bytes(path)).hexdigest()


def read_rows(path: str | Path) -> list[tuple[str, Row]]:
    """Reads JSON lines (skipping blank ones) or a .json file with one array, optionally gzipped.

    Returns (place, row) for every row; place is `file:line`, for error messages.

    Raises DataError if the file is missing, empty, not UTF-8 or not JSON, if its gzip data are
    broken, or if a row is not an object.
    """
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    whole = Path(path).name.removesuffix(".gz").endswith(".json")
    if whole and data.lstrip()[:1] == b"[":
        rows = _array_rows(path, data)
    else:
        lines = enumerate(data.split(b"\n"), start=1)
        places = ((f"{path}:{number}", line) for number, line in lines if line.strip())
        rows = [(place, _object(_parse(line, place), place)) for place, line in places]
    if not rows:
        raise DataError(f"{path}: holds no rows; expected one JSON object per line.")
    return rows


def read_jsonl(path: str | Path) -> list[Row]:
    """Like `read_rows`, without the places."""
    return [row for _, row in read_rows(path)]


def _array_rows(path: str | Path, data: bytes) -> list[tuple[str, Row]]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8 ({error.reason}).") from None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}: is not a JSON array ({error}).") from None
    places = ((f"{path}: item {number}", value) for number, value in enumerate(values, start=1))
    return [(place, _object(value, place)) for place, value in places]


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: is not UTF-8 ({error.reason}).") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: is not JSON ({error}); expected one object per line, or one array."
        ) from None


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: is {_kind(value)}; expected a JSON object.")
    return value


def to_record(row: Row, where: str) -> Record:
    """Converts a row in any of the three layouts to a `Record`.

    The user text may be empty (the prompt alone is the task); system and target may not.

    Raises DataError, naming `where`, the fields found and those expected, for any other row.
    """
    if "messages" in row:
        return _from_messages(row, where)
    for names in LAYOUTS:
        if names[0] in row:
            return _checked(where, row, names)
    raise DataError(f"{where}: found the fields {_names(row)}; {EXPECTED}.")


def _checked(where: str, row: Row, names: tuple[str, str, str]) -> Record:
    missing = [name for name in names if name not in row]
    if missing:
        raise DataError(
            f"{where}: the field {', '.join(missing)} is missing; "
            f"found {_names(row)}, expected {', '.join(names)}."
        )
    texts = [require_text(row, name, where, empty=name == names[1]) for name in names]
    return Record(*texts)


def _from_messages(row: Row, where: str) -> Record:
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(f"{where}: messages is not a list of objects; {EXPECTED}.")
    roles = tuple(message.get("role") for message in messages)
    if roles != ROLES:
        raise DataError(
            f"{where}: messages has the roles {', '.join(map(str, roles)) or 'none'}; "
            "expected exactly system, user, assistant. Split longer chats into single turns."
        )
    system, user, target = (
        require_text(message, "content", f"{where} ({message['role']} message)")
        for message in messages
    )
    return Record(system, user, target)


def require_text(row: Row, name: str, where: str, empty: bool = False) -> str:
    """Returns the string `row[name]`.

    Raises DataError, naming `where`, if it is missing, not a string, not valid Unicode, or (unless
    `empty` is set) blank.
    """
    if name not in row:
        raise DataError(f"{where}: the field {name} is missing; found {_names(row)}.")
    value = row[name]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: the field {name} is {_kind(value)}; expected a string (found {_names(row)})."
        )
    if not empty and not value.strip():
        raise DataError(f"{where}: the field {name} is empty (found {_names(row)}).")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair; no tokenizer can read it.
        raise DataError(f"{where}: the field {name} holds half a surrogate pair.") from None
    return value


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "no fields"


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def read_text(path: str | Path) -> str:
    """Reads a prompt file (`-` is standard input) and strips surrounding white space.

    Raises DataError if it is missing, not UTF-8 or empty.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else read_bytes(path)
    except DataError as error:
        raise DataError(
            f"{error} Expected a file with the text, or - for standard input."
        ) from None
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}: line {line} is not UTF-8 ({error.reason}); save the prompt as UTF-8 text."
        ) from None
    if not text.strip():
        raise DataError(f"{name}: is empty; expected the text of a system prompt.")
    return text.strip()
