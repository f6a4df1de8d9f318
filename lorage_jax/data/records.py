"""Reads files into rows, rows into `Record`s, and prompt files. Every error names file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lorage_jax.errors import DataError, bullets
from lorage_jax.fields import home_path

T = TypeVar("T")
Row = dict[str, Any]

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")  # of files of rows, in order of preference
# Names of the roles in ShareGPT, and OpenAI's newer one.
ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
EXPECTED = (
    "expected {system, user, target}, {instruction, input, output} "
    "or {messages: [{role, content}, ...]} with roles system, user, assistant, user, assistant, ..."
)


@dataclass(frozen=True)
class Record:
    """One example: the cloud reads `system`, the edge reads `user` and answers with `target`.

    `earlier` are the turns of a chat before `user`: texts of user and assistant in alternation.
    """

    system: str
    user: str
    target: str
    earlier: tuple[str, ...] = ()

    @property
    def query(self) -> tuple[str, ...]:
        """The texts that the edge reads and writes, of user and assistant in alternation."""
        return (*self.earlier, self.user, self.target)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in `.gz`.

    Raises DataError if it cannot be read.
    """
    path = home_path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{_name(path)}: no such file.") from None
    except OSError as error:
        raise DataError(f"{_name(path)}: cannot be read ({error.strerror or error}).") from None
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken or cut-off gzip file ({error}).") from None


def _name(path: Path) -> str:
    """The path, or the start of what can be none: a whole text where a file was expected."""
    if "\n" not in str(path) and all(len(part) < 256 for part in path.parts):
        return str(path)
    first = str(path).strip().partition("\n")[0]
    return f"{first[:60]!r} ..."


def file_digest(path: str | Path) -> str:
    """Hash of the (unpacked) content of a data file."""
    return "sha256:" + hashlib.sha256(read_bytes(path)).hexdigest()


class TooManySkipped(DataError):
    """More rows cannot be used than may be skipped."""


class Skipped:
    """Rows that cannot be used: up to `most` of them are left out, and the reasons kept.

    Without `most`, nothing is.

    Example:
        skipped = Skipped(most=10)
        records = [skipped.attempt(lambda: to_record(row, place)) for place, row in rows]
    """

    def __init__(self, most: int | None = None):
        self.most = most
        self.reasons: list[str] = []

    def attempt(self, make: Callable[[], T]) -> T | None:
        """Returns the result of `make`, or None if it raises DataError and the row may be skipped.

        Raises DataError for the first row beyond the number that may be skipped.
        """
        try:
            return make()
        except TooManySkipped:  # of a part of this row
            raise
        except DataError as error:
            if self.most is None:
                raise
            self.reasons.append(str(error))
            if len(self.reasons) <= self.most:
                return None
            more = f" It is row {self.most + 1} that cannot be used." if self.most else ""
            raise TooManySkipped(
                f"{error}{more} To skip such rows, raise skip_bad_rows of the source ({self.most})."
            ) from None

    @property
    def summary(self) -> str:
        """The number of skipped rows and the first reasons; empty if there are none."""
        if not self.reasons:
            return ""
        count = len(self.reasons)
        rows = f"{count} row{'s' * (count > 1)} cannot be used and {'were' if count > 1 else 'was'}"
        return f"{rows} skipped:\n{bullets(self.reasons, 3)}"


def read_rows(path: str | Path, skipped: Skipped | None = None) -> list[tuple[str, Row]]:
    """Reads JSON lines (skipping blank ones) or a .json file with one array, optionally gzipped.

    A .json file may also hold a single object. `skipped` takes the lines that are not JSON objects.

    Returns (place, row) for every row; place is `file:line`, for error messages.

    Raises DataError if the file is missing, empty, not UTF-8 or not JSON, if its gzip data are
    broken, or if a row is not an object.
    """
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    rows = _whole_rows(path, data)
    if rows is None:
        skipped = skipped or Skipped()
        lines = enumerate(data.split(b"\n"), start=1)
        places = [(f"{path}:{number}", line) for number, line in lines if line.strip()]
        parsed = ((p, skipped.attempt(partial(_parse_object, line, p))) for p, line in places)
        rows = [(place, row) for place, row in parsed if row is not None]
    if not rows:
        raise DataError(f"{path}: holds no rows; expected one JSON object per line.")
    return rows


def _whole_rows(path: str | Path, data: bytes) -> list[tuple[str, Row]] | None:
    """The rows of a .json file that holds one array or one object; None for JSON lines."""
    if not Path(path).name.removesuffix(".gz").endswith(".json"):
        return None
    if data.lstrip()[:1] == b"[":
        return _array_rows(path, data)
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        return None  # several lines, or damaged; the line will be named
    return [(f"{path}:1", value)] if isinstance(value, dict) else None


def _parse_object(line: bytes, place: str) -> Row:
    return _object(_parse(line, place), place)


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
    """Converts a row in any of the accepted layouts to a `Record`.

    The layout is that whose fields the row has. In {instruction, input, output}, the instruction
    is the system prompt; if there is a `system` as well, that is, and instruction and input are the
    user's. The user text may be empty or null (the prompt alone is the task), but not in messages;
    system and target may not. Messages without a system message take the row's `system`.

    Raises DataError, naming `where`, the fields found and those expected, for any other row, and
    for fields that would change the record and are not supported.
    """
    if "messages" in row:
        return _from_messages(row, "messages", "role", "content", where)
    if "conversations" in row:
        return _from_messages(row, "conversations", "from", "value", where)
    if "instruction" in row and not {"user", "target"} <= row.keys():
        return _from_alpaca(row, where)
    if "system" not in row:
        raise DataError(f"{where}: found the fields {_names(row)}; {EXPECTED}.")
    _require_fields(row, ("system", "user", "target"), where)
    system, target = (require_text(row, name, where) for name in ("system", "target"))
    return Record(system, _optional(row, "user", where), target)


def _from_alpaca(row: Row, where: str) -> Record:
    _require_fields(row, ("instruction", "output"), where)
    refuse_history(row, where)
    instruction, target = (require_text(row, name, where) for name in ("instruction", "output"))
    system, user = _optional(row, "system", where), _optional(row, "input", where)
    if not system.strip():
        return Record(instruction, user, target)
    return Record(system, f"{instruction}\n{user}" if user.strip() else instruction, target)


def refuse_history(row: Row, where: str) -> None:
    """Raises DataError for earlier turns in Alpaca's layout, which no reader takes."""
    if row.get("history"):
        raise DataError(
            f"{where}: the field history is not supported; write earlier turns as messages, "
            "{messages: [{role, content}, ...]}."
        )


def _optional(row: Row, name: str, where: str) -> str:
    """The text of a field that may be empty, null or absent."""
    return "" if row.get(name) is None else require_text(row, name, where, empty=True)


def _require_fields(row: Row, names: Sequence[str], where: str) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise DataError(
            f"{where}: the field {', '.join(missing)} is missing; "
            f"found {_names(row)}, expected {', '.join(names)}."
        )


def _from_messages(row: Row, field: str, role: str, content: str, where: str) -> Record:
    messages = row[field]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(f"{where}: {field} is not a list of objects; {EXPECTED}.")
    roles = [ROLES.get(str(m.get(role)), m.get(role)) for m in messages]
    given = _optional(row, "system", where)
    if given.strip() and roles[:1] != ["system"]:
        messages, roles = [{content: given}, *messages], ["system", *roles]
    if len(roles) < 3 or roles != ["system", *["user", "assistant"] * (len(roles) // 2)]:
        raise DataError(
            f"{where}: {field} has the roles {', '.join(map(str, roles)) or 'none'}; "
            "expected system, then user and assistant in alternation, an answer at the end."
        )
    system, *earlier, user, target = (
        _message_text(message, content, f"{where} ({name} message)", name == "assistant")
        for message, name in zip(messages, roles, strict=True)
    )
    if given.strip() not in ("", system.strip()):
        raise DataError(
            f"{where}: the field system differs from the system message in {field}. Leave one out."
        )
    return Record(system, user, target, tuple(earlier))


def _message_text(message: Row, content: str, where: str, answer: bool) -> str:
    """The text of a message, whole or as OpenAI's parts of the type text."""
    if answer and message.get("weight") not in (None, 1):
        raise DataError(
            f"{where}: the weight {message['weight']!r} is not supported; expected 1 or none. "
            "Leave the row out, or end it with an answer to learn."
        )
    parts = message.get(content)
    if isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in parts
    ):
        texts = [require_text(part, "text", where, empty=True) for part in parts]
        message = {**message, content: "".join(texts)}
    return require_text(message, content, where)


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
        # JSON can spell an unpaired surrogate; no tokenizer can read it.
        raise DataError(f"{where}: the field {name} contains an unpaired surrogate.") from None
    return value


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "no fields"


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def read_text(path: str | Path, what: str = "the text of a system prompt") -> str:
    """Reads a text file (`-` is standard input) and strips surrounding white space.

    Line ends of Windows become plain ones, so that a prompt is the same whoever saved it.
    `what` it is stands in messages. Raises DataError if it is missing, not UTF-8 or empty.
    """
    return read_whole_text(path, what).replace("\r\n", "\n").strip()


def read_whole_text(path: str | Path, what: str) -> str:
    """Reads a text file as `read_text` does, but returns every character of it."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else read_bytes(path)
    except DataError as error:
        raise DataError(
            f"{error} Expected a file with {what}, not the text itself, or - for standard input."
        ) from None
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}: line {line} is not UTF-8 ({error.reason}); expected {what} in UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{name}: is empty; expected {what}.")
    return text
