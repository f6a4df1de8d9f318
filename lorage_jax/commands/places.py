"""Places of results: a result replaces an older one of its kind, never an input or other file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lorage_jax.errors import OutputError
from lorage_jax.files.outputs import check_file, write_file
from lorage_jax.provenance import FORMAT

TABLE_HEADING = "## All methods on the same questions"  # of every table of `lorage compare`


class Kind(NamedTuple):
    """The results that an option of this name writes, and how such a file is recognised."""

    option: str
    what: str
    ours: Callable[[str], bool]


def _is_result(text: str) -> bool:
    """Earlier versions wrote results of eval and bench without a provenance."""
    values = json.loads(text)
    if not isinstance(values, dict):
        return False
    if "provenance" not in values:
        return values.get("kind") == "eval" or isinstance(values.get("bench"), str)
    origin = values["provenance"]
    return isinstance(origin, dict) and origin.get("format") == FORMAT


def _is_records(text: str) -> bool:
    row = json.loads(text.partition("\n")[0])
    return isinstance(row, dict) and "task" in row and ("arm" in row or "scores" in row)


def _is_port(text: str) -> bool:
    return text.endswith("\n") and text[:-1].isdecimal() and 0 < int(text) < 65536


def _is_table(text: str) -> bool:
    return text.startswith("# ") and TABLE_HEADING in text.splitlines()[:4]


RESULT = Kind("json", "a result that lorage wrote with --json", _is_result)
RECORDS = Kind("samples", "records that lorage eval wrote with --samples", _is_records)
PORT = Kind("port-file", "a file that lorage serve wrote a port to", _is_port)
TABLE = Kind("table", "a table that lorage compare wrote", _is_table)


def check_place(path: Path, kind: Kind, command: Any) -> None:
    """Raises OutputError unless `command` may write a result to `path`. Call it before long work.

    Refused are what the command's other options name, places in or above an --out that is replaced
    as a whole, and files that are not of the kind.
    """
    check_file(path, overwrite=True)
    for name, other in _named(command):
        if name not in (kind.option.replace("-", "_"), "out") and other.resolve() == path.resolve():
            raise OutputError(
                f"--{kind.option} {path} is a file that the command's {name.replace('_', ' ')} "
                "names, too: it would be lost. Choose another name."
            )
    _check_beside(path, kind, command)
    _check_ours(path, kind)


def write_result(path: Path, text: str, kind: Kind) -> None:
    """Writes a result; a file that came to be there during the work is kept. Raises OutputError."""
    check_file(path, overwrite=True)
    _check_ours(path, kind)
    write_file(path, text, overwrite=True)


def _check_ours(path: Path, kind: Kind) -> None:
    """An empty file is nobody's."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        ours = kind.ours(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        ours = False
    if not ours:
        raise OutputError(
            f"--{kind.option} {path} exists and is not {kind.what}, so it is not replaced. Move it "
            "away or choose another name."
        )


def _check_beside(path: Path, kind: Kind, command: Any) -> None:
    """Refuses a place in the folder of `--out`, at it or above it.

    A run's folder is not replaced as a whole, so other files may lie in it.
    """
    out = getattr(command, "out", None)
    if not isinstance(out, Path):
        return
    file, folder = path.resolve(), out.resolve()
    if file == folder:
        where = "the same as"
    elif file in folder.parents:
        where = "a folder above"
    elif folder in file.parents and hasattr(command, "overwrite"):
        where = "inside"
    else:
        return
    raise OutputError(
        f"--{kind.option} {path} is {where} --out {out}. Expected another place, such as "
        f"{out.with_name(f'{out.name}.json')}."
    )


def _named(command: Any) -> Iterator[tuple[str, Path]]:
    """The paths that a command's options name; of texts, the parts that are files."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path):
                yield field.name, one
            elif isinstance(one, str):
                for part in one.split(","):
                    if (path := _file(part.strip())) is not None:
                        yield field.name, path


def _file(text: str) -> Path | None:
    """The file that a text names; None if there is none."""
    try:
        path = Path(text).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, or what no path can hold
        return None
