"""Keeps what a comparison measured: the figures of every part, and the costs of all rows.

A file of figures is tied to all that they depend on, so that an interrupted comparison, or one with
more rows or seeds, asks only what is not there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorage_jax.bundled import generator_folder
from lorage_jax.compare.parts import Part
from lorage_jax.config import CompareConfig, ExperimentConfig, TaskQuestions
from lorage_jax.data.records import file_digest
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.data.written_tasks import task_files
from lorage_jax.distributed import check_same, gather_texts, is_main, on_main
from lorage_jax.errors import OutputError
from lorage_jax.fields import places_learnt_from, to_dict
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.files.outputs import write_file
from lorage_jax.hf.usage import usage_digest
from lorage_jax.methods.finished import result_digest
from lorage_jax.methods.method import FromSamples, get_method
from lorage_jax.provenance import machine, provenance
from lorage_jax.world.prompts import VERSION as WORLD

FIGURES = 4  # version of a part's file; of other versions, the trained method is asked again
LATER = ("usage", "dtype")  # of an identity, since version 4
COSTS = "costs"


def figures(
    config: CompareConfig, part: Part, limit: int | None, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The figures of a part: from its file, or measured now and written to it.

    With several processes, all call `measure`; the main one keeps the file. Raises OutputError if
    the file's figures were measured with other settings, models or data, or if it is another file,
    and ConfigError if those of the processes differ.
    """
    path = _file(config, part.name, limit)
    what = identity(config, part, limit)
    check_same(
        {f"{name} of {part.name}": value for name, value in what.items()},
        "All processes need the same models, data and experiment.",
    )
    found = _read(path, ("identity", "result"))
    if found is not None:
        _without_places(found["identity"])
    if found is not None and found.get("figures") == FIGURES and found["identity"] == what:
        return found["result"]
    if found is not None and not _same(found, what):
        raise OutputError(
            f"{path} was measured with other settings, models or data. Move it away to measure "
            "again, or go back to the old ones."
        )
    result = measure()
    _write(path, {"figures": FIGURES, "identity": what, "result": result})
    return result


def costs(
    config: CompareConfig,
    parts: Sequence[Part],
    limit: int | None,
    measure: Callable[[], dict[str, dict[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """The costs of all rows: kept ones if a run on such a machine measured them, or measured now.

    With several processes, the main one alone has them if they are measured now. Raises OutputError
    if their file is another one.
    """
    path, here = _file(config, COSTS, limit), machine()
    rows = {part.row: identity(config, part, limit) for part in parts if part.seed == 0}
    found = _read(path, ("rows", "costs", "provenance"))
    if (
        found is not None
        and found["provenance"].get("machine") == here
        and all(found["rows"].get(row) == what for row, what in rows.items())
    ):
        return {row: found["costs"][row] for row in rows}
    result = measure()
    _write(path, {"rows": rows, "costs": result})
    return result


def _file(config: CompareConfig, name: str, limit: int | None) -> Path:
    if limit is None:
        return config.figures_folder / f"{name}.json"
    return Path(config.base.out) / "results" / f"{name}-{limit}.json"


def _read(path: Path, fields: Sequence[str]) -> dict[str, Any] | None:
    """The content of a kept file; None if there is none. Raises OutputError for another file."""
    there = is_main() and path.is_file()
    text = gather_texts(path.read_text("utf-8", errors="replace") if there else "")[0]
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and all(isinstance(found.get(name), dict) for name in fields):
        return found
    raise OutputError(f"{path} is not a file of lorage compare, or is damaged; move it away.")


def _write(path: Path, found: dict[str, Any]) -> None:
    origin = provenance([Path(sys.argv[0]).name, *sys.argv[1:]])
    del origin["command"]  # of one of many runs
    text = json.dumps({**found, "provenance": origin}) + "\n"
    on_main(lambda: write_file(path, text, overwrite=True))


def identity(config: CompareConfig, part: Part, limit: int | None) -> dict[str, Any]:
    """Everything that a part's figures depend on."""
    run = part.experiment or config.base
    found: dict[str, Any] = {
        "cloud": fingerprint(run.cloud),
        "edge": fingerprint(run.edge),
        "usage": {place: usage_digest(getattr(run, place)) for place in ("cloud", "edge")},
        "questions": to_dict(config.questions) | {"limit": limit},
        "world": WORLD,
    }
    if isinstance(config.questions, TaskQuestions):
        found["questions"] |= {"path": [file_digest(f) for f in task_files(config.questions.path)]}
    if part.samples:
        found["samples"] = part.samples
    if part.trained is not None:
        found["trained"] = result_digest(generator_folder(part.trained))
    if part.experiment is None:
        found["dtype"] = run.dtype
    else:
        settings = to_dict(part.experiment)
        for place in ("out", "cloud", "edge"):
            del settings[place]
        data = data_fingerprint(part.experiment.data.sources)
        found |= {"experiment": settings, "data": data}
        if learnt := _learnt_from(part.experiment):
            found["learnt_from"] = learnt
    if part.method != (part.row if part.experiment is None else part.experiment.method):
        found["method"] = part.method
    kind = get_method(part.method)
    if issubclass(kind, FromSamples):
        found["learning"] = to_dict(part.learning or kind.learning())
    return _without_places(json.loads(json.dumps(found)))


def _learnt_from(run: ExperimentConfig) -> list[str | dict[str, str]]:
    """Contents of the folders and files that a run begins with or learns from."""
    names = (run.init, *places_learnt_from(run.settings))
    places = [generator_folder(Path(place)) for place in names if place]
    return [file_digest(place) if place.is_file() else result_digest(place) for place in places]


def _same(found: dict[str, Any], what: dict[str, Any]) -> bool:
    """True if a file was measured with `what`, as far as its version says."""
    left_out = () if found.get("figures") == FIGURES else LATER
    own, other = (
        {name: value for name, value in one.items() if name not in left_out}
        for one in (found["identity"], what)
    )
    return own == other


def _without_places(found: dict[str, Any]) -> dict[str, Any]:
    """The identity with the names of data files alone, wherever they lie; digests tell contents."""
    for source in found.get("experiment", {}).get("data", {}).get("sources", ()):
        source["path"] = Path(source["path"]).name
    return found
