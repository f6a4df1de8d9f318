"""Files of tasks: every row is a whole task, with its definitions and its instances.

A row is `{name, definition, instances}`; `definition` is a text or a list of paraphrases, and may
be empty. An instance is `{input, output}`, where `output` is a text or a list of accepted answers,
and may have `choices`. `positive_examples`, as in Super-NaturalInstructions, are instances that
only ever serve as samples. That collection's own capitals (`Definition`, `Positive Examples`) are
read as well, and `task` for `name`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorage_jax.config import HeldOut
from lorage_jax.data.records import ENDINGS, Row, Skipped, read_rows, require_text
from lorage_jax.errors import DataError
from lorage_jax.fields import home_path

EXPECTED = "expected {name, definition, instances: [{input, output, choices?}, ...]}"
SPLITS = ("train", "instances", "paraphrases", "tasks")
# Splits of an instance that its own data set keeps for evaluation.
TEST, VALIDATION = ("test", "execute"), ("validation", "valid", "val", "dev", "eval")
# Marks by which other models' data end a text; no answer contains them.
ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>")


@dataclass(frozen=True)
class Instance:
    """A question of a task, its accepted answers (the first is the one to learn), its choices.

    `split` is what the data themselves say: `train`, `test`, or empty.
    """

    input: str
    outputs: tuple[str, ...]
    choices: tuple[str, ...] = ()
    split: str = ""

    @property
    def key(self) -> str:
        """The input without differences of case and white space, which make no other question."""
        return normal(self.input)


@dataclass(frozen=True)
class WrittenTask:
    """A task of a file.

    Attributes:
        name: unique among those read together.
        own_name: the row's own, whatever is read with it; it decides what is held out.
        group: tasks of one kind or origin, if the row says so.
        source: the collection, if the row says so, else the file's name.
        definitions: paraphrases of one system prompt; may be empty.
        instances: its questions.
        examples: solved questions that only serve as samples.
        place: file and line.
    """

    name: str
    own_name: str
    group: str
    source: str
    definitions: tuple[str, ...]
    instances: tuple[Instance, ...]
    examples: tuple[Instance, ...]
    place: str


def normal(text: str) -> str:
    """A text without differences of case and white space."""
    return " ".join(text.split()).casefold()


def task_files(path: str | Path) -> list[Path]:
    """The file itself, or the files of tasks in a folder, sorted by name.

    Raises DataError if the folder holds none.
    """
    path = home_path(path)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
    if not files:
        raise DataError(f"{path}: holds no files of tasks; expected {', '.join(ENDINGS)}.")
    return files


def read_tasks(paths: Sequence[str | Path]) -> list[WrittenTask]:
    """The tasks of files and folders, in their order, with names that are unique.

    Raises DataError, naming file and line, for a row that is not a task.
    """
    files = [file for path in paths for file in task_files(path)]
    return to_tasks([row for file in files for row in read_rows(file)])


def to_tasks(rows: Iterable[tuple[str, Row]], skipped: Skipped | None = None) -> list[WrittenTask]:
    """Tasks of (place, row) pairs. A name that several have is given its source in front.

    `skipped` takes rows that are not tasks, and instances that cannot be used.

    Raises DataError for a row that is not a task, or if two tasks cannot be told apart.
    """
    skipped = skipped or Skipped()
    made = [skipped.attempt(partial(to_task, row, place, skipped)) for place, row in rows]
    tasks = [task for task in made if task is not None]
    count = Counter(task.name for task in tasks)
    tasks = [
        dataclasses.replace(task, name=f"{task.source}/{task.name}")
        if count[task.name] > 1
        else task
        for task in tasks
    ]
    seen: dict[str, str] = {}
    for task in tasks:
        if task.name in seen:
            raise DataError(
                f"{task.place}: another task is called {task.name} as well ({seen[task.name]}). "
                "Rename one."
            )
        seen[task.name] = task.place
    return tasks


def to_task(row: Row, place: str, skipped: Skipped | None = None) -> WrittenTask:
    """A row as a task. Raises DataError, naming `place`, if it is not one."""
    skipped = skipped or Skipped()
    row = {key.strip().lower().replace(" ", "_"): value for key, value in row.items()}
    file = Path(place.split(": item ")[0].rpartition(":")[0] or place).name
    stem = file.removesuffix(".gz").rpartition(".")[0] or file
    name = row.get("name", row.get("task"))
    if name is None and "instances" in row:
        name = stem  # one task per file, as Super-NaturalInstructions has them
    if not isinstance(name, str) or not name.strip() or "instances" not in row:
        found = ", ".join(map(str, row)) or "no fields"
        raise DataError(f"{place}: found the fields {found}; {EXPECTED}.")
    where = f"{place} (task {name})"
    group, source = (row.get(key) for key in ("group", "source"))
    return WrittenTask(
        name=name.strip(),
        own_name=name.strip(),
        group=group if isinstance(group, str) else "",
        source=source if isinstance(source, str) and source else stem,
        definitions=_definitions(row.get("definition"), where),
        instances=_instances(row["instances"], f"{where}: instance", skipped),
        examples=_instances(row.get("positive_examples"), f"{where}: positive example", skipped),
        place=place,
    )


def _definitions(value: Any, where: str) -> tuple[str, ...]:
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise DataError(f"{where}: definition is neither a text nor a list of texts.")
    texts = [require_text({"definition": text}, "definition", where, empty=True) for text in values]
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _instances(values: Any, where: str, skipped: Skipped) -> tuple[Instance, ...]:
    values = [] if values is None else values
    if not isinstance(values, list):
        raise DataError(f"{where}s: are not a list; {EXPECTED}.")
    made = (
        skipped.attempt(partial(_instance, value, f"{where} {i}"))
        for i, value in enumerate(values, start=1)
    )
    return tuple(one for one in made if one is not None)


def _instance(value: Any, where: str) -> Instance:
    if not isinstance(value, dict):
        raise DataError(f"{where}: is not an object; expected {{input, output}}.")
    if "output" not in value:
        require_text(value, "output", where)  # raises
    accepted = value["output"]
    texts = [accepted] if not isinstance(accepted, list) else accepted
    if not texts:
        raise DataError(f"{where}: output is an empty list; expected an accepted answer.")
    outputs = tuple(
        dict.fromkeys(_answer(require_text({"output": text}, "output", where)) for text in texts)
    )
    if not all(outputs):
        raise DataError(f"{where}: the field output is empty.")
    choices = value.get("choices") or []
    if not isinstance(choices, list):
        raise DataError(f"{where}: choices is not a list of texts.")
    options = tuple(_answer(require_text({"choices": text}, "choices", where)) for text in choices)
    if options and not any(output in options for output in outputs):
        raise DataError(
            f"{where}: the output {outputs[0]!r} is none of the {len(options)} choices."
        )
    split = value.get("split")
    text = "" if value.get("input") is None else require_text(value, "input", where, empty=True)
    return Instance(text, outputs, options, split.strip().lower() if isinstance(split, str) else "")


def _answer(text: str) -> str:
    """An answer without surrounding white space and the mark by which other data end a text."""
    text = text.strip()
    for end in ENDS:
        text = text.removesuffix(end).rstrip()
    return text


def is_held_out(kind: str, text: str, share: float, seed: int) -> bool:
    """True for `share` of all texts of a kind, decided by a hash of the text and the seed."""
    digest = hashlib.sha256(f"{seed}\0{kind}\0{normal(text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def task_held_out(task: WrittenTask, held: HeldOut) -> bool:
    """True if the task, or with `by="group"` its group, is kept from training.

    The name in the row decides, so that a file is divided alike whatever is read with it.
    """
    key = task.group if held.by == "group" and task.group else task.own_name
    return is_held_out("task", key, held.tasks, held.seed)


def divide(tasks: Sequence[WrittenTask], held: HeldOut, split: str) -> list[WrittenTask]:
    """The part of the tasks that belongs to a split; tasks without questions there are left out.

        split          tasks      definitions  instances and examples
        `train`        seen       seen         seen
        `instances`    seen       seen         held out
        `paraphrases`  seen       held out     held out
        `tasks`        held out   all          all

    Instances that the data themselves mark as test or validation are held out, too. A definition
    of a task that is held out serves no other task in training.

    Raises DataError for another split, and if nothing is left.
    """
    if split not in SPLITS:
        raise DataError(f"a source of tasks has no split {split!r}; expected {', '.join(SPLITS)}.")
    foreign = {normal(d) for task in tasks if task_held_out(task, held) for d in task.definitions}
    parts = [_part(task, held, split, foreign) for task in tasks]
    found = [
        part
        for part in parts
        if part is not None and part.instances and (split != "paraphrases" or part.definitions)
    ]
    if not found:
        raise DataError(
            f"none of the {len(tasks)} tasks has anything in the split {split} (held_out: tasks "
            f"{held.tasks}, paraphrases {held.paraphrases}, instances {held.instances}, seed "
            f"{held.seed}). Raise or lower these shares, or choose another seed."
        )
    return found


def _part(task: WrittenTask, held: HeldOut, split: str, foreign: set[str]) -> WrittenTask | None:
    if task_held_out(task, held) != (split == "tasks"):
        return None
    if split == "tasks":
        return task
    marked = {i.key for i in task.instances if i.split in TEST + VALIDATION}

    def instances(values: tuple[Instance, ...]) -> tuple[Instance, ...]:
        kept = []
        for one in values:
            out = one.key in marked
            out = out or is_held_out("instance", one.input, held.instances, held.seed)
            if out == (split != "train"):
                kept.append(one)
        return tuple(kept)

    def definition(text: str) -> bool:
        if is_held_out("definition", text, held.paraphrases, held.seed):
            return split == "paraphrases"
        return split != "paraphrases" and normal(text) not in foreign

    return dataclasses.replace(
        task,
        definitions=tuple(filter(definition, task.definitions)),
        instances=instances(task.instances),
        examples=instances(task.examples),
    )
