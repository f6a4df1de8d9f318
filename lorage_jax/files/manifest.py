"""Manifests: the JSON by which we recognise our own folders (`lorage.json`) and cards.

Every manifest has a `format`. A folder's manifest also lists the folder's files, so that a later
run can replace the folder and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Any

from lorage_jax.errors import OutputError, WeightsError, denied

MANIFEST = "lorage.json"
MODEL = "lorage-model/1"  # format of a pretrained model
MERGED = "lorage-merged/1"  # format of an exported model
OWN_TURNS = "own_turns"  # of a merged folder: true if it answers as its base does, not as trained

Fields = Mapping[str, type | UnionType]


@dataclass(frozen=True)
class Kind:
    """One format of manifest, and the words that error messages use for it.

    `fields` are required; a dotted name is a field of an object inside (`edge.config`).
    """

    format: str  # lorage-generator/1
    name: str  # a generator
    origin: str  # the `generator` folder of a run of `lorage train`
    fields: Fields = field(default_factory=dict)

    def check(self, values: Any, where: str | Path) -> dict[str, Any]:
        """Returns `values`. Raises WeightsError unless they are a manifest of this kind."""
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        if not isinstance(values, dict) or found != self.format:
            raise WeightsError(
                f"{where} is not {self.name}: expected format {self.format!r}, found {found!r}."
            )
        check_fields(where, values, self.fields)
        return values

    def read(self, folder: str | Path) -> dict[str, Any]:
        """The manifest of a folder of this kind. Raises WeightsError."""
        folder = Path(folder)
        if not folder.is_dir():
            raise WeightsError(f"{folder} is not a folder; expected {self.origin}.")
        try:
            values = json.loads((folder / MANIFEST).read_text("utf-8"))
        except FileNotFoundError:
            raise WeightsError(
                f"{folder} holds no {MANIFEST}; expected {self.origin}{self.hint(folder)}"
            ) from None
        except PermissionError:
            raise WeightsError(denied(folder / MANIFEST)) from None
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{folder / MANIFEST} cannot be read: {error}.") from None
        return self.check(values, folder)

    def hint(self, folder: Path) -> str:
        """The end of a message about a folder: names a folder of this kind that is inside it."""
        try:
            inside = [one for one in sorted(folder.iterdir()) if (one / MANIFEST).is_file()]
        except OSError:
            return "."
        found = [one for one in inside if manifest_of(one).get("format") == self.format]
        return f"; did you mean {found[0]}?" if found else "."


def check_fields(where: str | Path, values: Mapping[str, Any], fields: Fields) -> None:
    """Raises WeightsError for the first field that is missing or has another type."""
    for name, kind in fields.items():
        *path, last = name.split(".")
        inside: Any = values
        for key in path:
            inside = inside.get(key, {})
        if not isinstance(inside.get(last), kind):
            found = repr(inside[last])[:80] if last in inside else "missing"
            expected = kind.__name__ if isinstance(kind, type) else kind
            raise WeightsError(f"{where} is damaged: {name} is {found}; expected {expected}.")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of any folder; empty if it is missing or unreadable."""
    try:
        values = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def write_manifest(folder: Path, payload: dict[str, Any]) -> None:
    """Writes `lorage.json`: the payload, `files` (relative names, its own too) and `lorage_jax`.

    Call it as the last step inside `new_folder`, which makes the write safe.
    """
    reserved = {"files", "lorage_jax"} & set(payload)
    if reserved:
        raise ValueError(f"payload must not hold {sorted(reserved)}: they are filled in here.")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    content = {**payload, "lorage_jax": _version(), "files": sorted(files | {MANIFEST})}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def written_files(folder: Path) -> set[str]:
    """Names of the files that lorage_jax wrote into `folder`. Raises OutputError."""
    files = manifest_of(folder).get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise OutputError(
            f"{folder} exists and has no usable {MANIFEST}, so lorage_jax did not write it and "
            "will not replace it. Choose another folder."
        )
    return set(files)


def _version() -> str:
    try:
        return metadata.version("lorage_jax")
    except metadata.PackageNotFoundError:
        return "0+unknown"
