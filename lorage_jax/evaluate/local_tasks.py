"""lm-eval's own task definitions on local files instead of the Hub's data sets.

A folder holds `<task>/<split>.jsonl(.gz)`. Rows are {question, choices, label}, or in the Hub's
layout, to which the former are converted. So lm-eval's definition of a task (its prompt text,
choices and metrics) is used unchanged.
"""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorage_jax.data.records import ENDINGS, Row, file_digest, read_rows
from lorage_jax.data.task_table import TASKS
from lorage_jax.data.tasks import Task
from lorage_jax.errors import ConfigError, DataError, did_you_mean
from lorage_jax.evaluate.written import WrittenTasks
from lorage_jax.fields import home_path

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
# Other names of files for a split, unless the definition has a split of that name, too.
ALIASES = {"validation": ("valid", "val", "dev")}


def check_installed() -> None:
    """Raises ConfigError if lm-eval is not installed."""
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError:
        raise ConfigError(
            "scoring on tasks needs lm-eval, which is not installed: "
            'pip install "lorage_jax[eval]".'
        ) from None
    # It would warn of every setting that a task leaves at its default.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@functools.cache
def _index(folders: tuple[str, ...], everything: bool) -> TaskManager:
    """Indexes lm-eval's definitions. Raises ConfigError if lm-eval is not installed."""
    check_installed()
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    paths: list[str | Path] = [home / folder for folder in folders]
    return lm_eval.tasks.TaskManager(include_path=paths or None, include_defaults=everything)


def _manager(everything: bool) -> TaskManager:
    """lm-eval's definitions of our tasks, or of all its tasks: thousands, which takes long."""
    own = tuple(dict.fromkeys(task.folder for task in TASKS.values()))
    if everything:  # lm-eval finds its own folders
        own = tuple(folder for folder in own if Path(folder).is_absolute())
    return _index(own, everything)


def _known(everything: bool) -> list[str]:
    return _manager(everything).all_subtasks


@functools.cache
def _folders(name: str) -> tuple[str, ...]:
    """lm-eval's folders with a definition that names `name`: a task, a group or a tag.

    Searching texts takes a twentieth of the time of reading all definitions as YAML.
    """
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    value = re.compile(rb"^(.*[\s:])?[\"']?%s[\"']?\s*$" % re.escape(name.encode()), re.MULTILINE)
    found = (path.parent for path in home.rglob("*.y*ml") if value.search(path.read_bytes()))
    return tuple(dict.fromkeys(map(str, found)))


def _manager_with(name: str) -> TaskManager | None:
    """The definitions that include a task's: ours, or those of its folder; None if none do."""
    if name in _known(everything=False):
        return _manager(everything=False)
    for folder in _folders(name):
        if name in (manager := _index((folder,), False)).all_subtasks:
            return manager
    return None


def _definition(name: str) -> dict[str, Any]:
    """The task's definition in lm-eval's YAML file."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = (_manager_with(name) or _manager(everything=True)).task_index[name]
    if entry.yaml_path is None:
        raise ConfigError(
            f"{name} is defined by code in lm-eval; only tasks with a YAML file are supported."
        )
    return copy.deepcopy(load_yaml(entry.yaml_path))


def check_names(names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raises ConfigError, listing the nearest known names, if a task is unknown or none is named.

    `others` are names that are known besides lm-eval's.
    """
    problems = [] if names else ["--tasks names no task."]
    for name in names:
        if name not in others and _manager_with(name) is None:
            problems += _problem(name, others)
    if problems:
        raise ConfigError("\n".join(problems))


def _problem(name: str, others: Sequence[str]) -> list[str]:
    """The reason why lm-eval has no task `name`; empty if it has one after all."""
    hint = did_you_mean(name, [*_known(everything=False), *others])
    if _folders(name) or not hint:
        everything = _manager(everything=True)
        if name in everything.all_subtasks:
            return []
        if name in everything.all_tasks:
            return [f"{name} is a group of lm-eval tasks; name its tasks instead"]
        hint = hint or did_you_mean(name, everything.all_subtasks)
    if Path(name).is_dir():
        hint = f"; for the files of the folder {name}, write {name}/"
    return [f"there is no task {name!r}{hint}"]


class TaskData:
    """The source of the tasks' records, checked and fingerprinted.

    Args:
        source: `hub`, or a local folder.
        written: tasks of files, which bring their records along.
    """

    def __init__(self, source: str, written: WrittenTasks | None = None):
        self.folder = None if source == "hub" else home_path(source)
        self.written = {} if written is None else written.tasks
        self.fingerprints: dict[str, dict[str, str]] = {} if written is None else {**written.files}
        self._read: dict[tuple[str, bool], Any] = {}
        self._others: dict[str, tuple[str, str]] = {}  # scored split, the definition's own
        if self.folder is not None and not self.folder.is_dir():
            raise DataError(
                f"--data {source}: no such folder. Expected hub, or a folder with "
                "<task>/<split>.jsonl."
            )

    def load(self, name: str, shots: int, **overrides: Any) -> Any:
        """Loads lm-eval's task with `shots` samples in the context.

        `overrides` replace fields of its definition.

        Raises DataError if a split that the definition needs is missing, or a record is malformed,
        and ConfigError if the definition has no samples but the records that are scored.
        """
        if name in self.written:
            return _task(self.written[name].definition(shots) | overrides)
        config = {k: v for k, v in _definition(name).items() if k not in ("tag", "group")}
        # Like lm-eval, keep to a definition that explicitly sets 0 samples.
        shots = 0 if config.get("num_fewshot") == 0 else shots
        config["num_fewshot"] = shots
        config["metadata"] = config.get("metadata") or {}
        if shots:
            _check_samples(name, shots, config)
        if self.folder is not None:
            kind = (name, shots > 0)
            if kind not in self._read:
                self._read[kind] = self._splits(name, shots, config)
            splits = self._read[kind]
            config |= {"custom_dataset": lambda **_: splits, "dataset_kwargs": None}
            # lm-eval would ask for the missing splits, of which nothing is needed.
            config |= {key: None for key in SPLITS if config.get(key) not in splits}
        try:
            return _task(config | overrides)
        except Exception as error:  # the definition's own code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            if self.folder is None:
                raise DataError(
                    f"{name}: its records could not be downloaded ({reason}). Pass a folder with "
                    f"{name}/<split>.jsonl as --data."
                ) from None
            raise DataError(
                f"{self._folder(name)}: the rows lack fields that lm-eval's definition of {name} "
                f"reads ({reason})."
            ) from None

    def described(self, name: str) -> Task:
        """The description of a task: a file's, or the project's own.

        Raises ConfigError if there is none.
        """
        found = self.written[name].task if name in self.written else TASKS.get(name)
        if found is None:
            raise ConfigError(
                f"a generator needs a description of {name}; only {', '.join(TASKS)} have one, and "
                "tasks of files. Score other tasks with --model."
            )
        return found

    def few_shot(self, name: str) -> dict[str, str]:
        """Fields of the definition for lm-eval's few-shot prompt; none for lm-eval's own tasks."""
        return self.written[name].few_shot() if name in self.written else {}

    def facts(self, name: str) -> dict[str, Any]:
        """A result's description of the task's records."""
        if name in self._others:
            return {"split": self._others[name][0]}
        return self.written[name].facts if name in self.written else {}

    def words(self, names: Sequence[str]) -> list[str]:
        """A sentence per task that was not scored on its definition's split, for lack of it."""
        return [
            f"{name} was scored on its {self._others[name][0]} split; lm-eval's definition scores "
            f"{self._others[name][1]}, which --data lacks."
            for name in names
            if name in self._others
        ]

    def default_shots(self, name: str) -> int:
        """The number of few-shot samples in the task's definition."""
        if name in self.written:
            return self.written[name].shots
        return _definition(name).get("num_fewshot") or 0

    def _splits(self, name: str, shots: int, definition: dict[str, Any]) -> Any:
        """The task's files as a DatasetDict; everything that a run needs is checked here."""
        from datasets import Dataset, DatasetDict, disable_progress_bars

        disable_progress_bars()

        folder = self._folder(name)
        names = {definition[key] for key in SPLITS if definition.get(key)}
        files = {split: _file(folder, split, names) for split in names}
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        source = _sample_split(definition) if shots else None
        asked = [s for key in ("test_split", "validation_split") if (s := definition.get(key))]
        # lm-eval scores the first; a folder without it has at least not the samples' own.
        scored = next((s for s in asked if files[s] and (s == asked[0] or s != source)), None)
        if scored is None:
            raise DataError(
                f"{folder}: {name} is scored on its {' or '.join(asked)} split; expected "
                f"{asked[0]}.jsonl (or .gz), found {found}."
            )
        if source and files[source] is None:
            raise DataError(
                f"{folder}: {name} draws its {shots} samples from the {source} split; expected "
                f"{source}.jsonl (or .gz), found {found}. Add it, or use no samples for this task: "
                f"--shots {shots},{name}=0."
            )
        if scored != asked[0]:
            self._others[name] = scored, asked[0]
        splits = {}
        for split in filter(None, (scored, source)):
            path = files[split]
            if path is not None and split not in splits:
                try:
                    splits[split] = Dataset.from_list(_filled(_read(name, path)))
                except (TypeError, ValueError) as error:  # pyarrow's errors are ValueErrors, too
                    raise DataError(
                        f"{path}: its rows do not all have the same types of values ({error})."
                    ) from None
                self.fingerprints.setdefault(name, {})[split] = file_digest(path)
        return DatasetDict(splits)

    def _folder(self, name: str) -> Path:
        assert self.folder is not None, "called only with local data"
        places = [self.folder / name, *sorted(self.folder.glob(f"*/{name}"))]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            there = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
            raise DataError(
                f"{self.folder}: no folder {name}; found {', '.join(there) or 'no folders'}. "
                f"Expected {name}/test.jsonl or {name}/validation.jsonl."
            )
        return found


def _task(config: dict[str, Any]) -> Any:
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config=config)


def _sample_split(definition: dict[str, Any]) -> str | None:
    """The split of a definition's few-shot samples, by lm-eval's rule.

    None if they stand in the definition itself, or if it has no split but the scored one.
    """
    own = definition.get("fewshot_config") or {}
    named = own.get("split") or definition.get("fewshot_split")
    if named or own.get("samples") is not None:
        return named
    others = (definition.get("training_split"), definition.get("validation_split"))
    scored = definition.get("test_split") or definition.get("validation_split")
    return next((split for split in others if split and split != scored), None)


def _check_samples(name: str, shots: int, definition: dict[str, Any]) -> None:
    """Refuses lm-eval's fallback: samples from the records that are scored, answers included."""
    own = definition.get("fewshot_config") or {}
    if _sample_split(definition) is None and own.get("samples") is None:
        raise ConfigError(
            f"lm-eval's definition of {name} has no samples but the records that are scored. Use "
            f"none for this task: --shots {shots},{name}=0."
        )


def _file(folder: Path, split: str, splits: set[str]) -> Path | None:
    """The file of a split; `splits` are all that the definition names."""
    others = [alias for alias in ALIASES.get(split, ()) if alias not in splits]
    names = [f"{name}{ending}" for name in (split, *others) for ending in ENDINGS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _filled(rows: list[Row]) -> list[Row]:
    """The rows with the same fields, None where a row lacks one: a table's first row names all."""
    empty = dict.fromkeys(field for row in rows for field in row)
    return [empty | row for row in rows]


def _read(name: str, path: Path) -> list[Row]:
    task = TASKS.get(name)
    rows = []
    for where, row in read_rows(path):
        if task is None:
            rows.append(row)
        elif task.hub_field in row:
            task.to_example(row, where)  # raises if the answer is missing or out of range
            rows.append(row)
        else:
            rows.append(task.to_hub(row, where))
    return rows
