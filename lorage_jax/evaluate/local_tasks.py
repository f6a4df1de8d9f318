"""lm-eval's own task definitions on local files instead of the Hub's data sets.

A folder holds `<task>/<split>.jsonl(.gz)`. Rows are {question, choices, label}, or in the Hub's
layout, to which the former are converted. So lm-eval's definition of a task (its prompt text,
choices and metrics) is used unchanged.
"""

from __future__ import annotations

import copy
import difflib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorage_jax.data.records import Row, file_digest, read_rows
from lorage_jax.data.task_table import TASKS
from lorage_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@functools.cache
def _index(folders: tuple[str, ...], everything: bool) -> TaskManager:
    """Indexes lm-eval's definitions. Raises ConfigError if lm-eval is not installed."""
    try:
        import lm_eval.tasks
    except ImportError:
        raise ConfigError(
            "scoring on tasks needs lm-eval, which is not installed: "
            'pip install "lorage_jax[eval]".'
        ) from None
    # It would warn of every setting that a task leaves at its default.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
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


def _definition(name: str) -> dict[str, Any]:
    """The task's definition in lm-eval's YAML file."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = _manager(everything=name not in _known(everything=False)).task_index[name]
    if entry.yaml_path is None:
        raise ConfigError(
            f"{name} is defined by code in lm-eval; only tasks with a YAML file are supported."
        )
    return copy.deepcopy(load_yaml(entry.yaml_path))


def check_names(names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raises ConfigError, listing the nearest known names, if a task is unknown or none is named.

    `others` are names that are known besides lm-eval's.
    """
    if names and all(name in others for name in names):
        return
    quick = [*_known(everything=False), *others]
    if names and all(name in quick for name in names):
        return
    known = [*_known(everything=True), *others]
    problems = []
    for name in names:
        if name in _manager(everything=True).all_tasks and name not in known:
            problems.append(f"{name} is a group of lm-eval tasks; name its tasks instead")
        elif name not in known:
            near = difflib.get_close_matches(name, quick, n=3, cutoff=0.6)
            near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            problems.append(f"there is no task {name!r}{hint}")
    if problems or not names:
        raise ConfigError("\n".join(problems or ["--tasks names no task."]))


class TaskData:
    """The source of the tasks' records: `hub`, or a local folder, checked and fingerprinted."""

    def __init__(self, source: str):
        self.folder = None if source == "hub" else Path(source)
        self.fingerprints: dict[str, dict[str, str]] = {}
        self._read: dict[tuple[str, bool], Any] = {}
        if self.folder is not None and not self.folder.is_dir():
            raise DataError(
                f"--data {source}: no such folder. Expected hub, or a folder with "
                "<task>/<split>.jsonl."
            )

    def load(self, name: str, shots: int, **overrides: Any) -> Any:
        """Loads lm-eval's task with `shots` samples in the context.

        `overrides` replace fields of its definition.

        Raises DataError if a split that the definition needs is missing, or a record is malformed.
        """
        from lm_eval.api.task import ConfigurableTask

        config = {k: v for k, v in _definition(name).items() if k not in ("tag", "group")}
        # Like lm-eval, keep to a definition that explicitly sets 0 samples.
        config["num_fewshot"] = 0 if config.get("num_fewshot") == 0 else shots
        config["metadata"] = config.get("metadata") or {}
        if self.folder is not None:
            kind = (name, shots > 0)
            if kind not in self._read:
                self._read[kind] = self._splits(name, shots, config)
            splits = self._read[kind]
            config |= {"custom_dataset": lambda **_: splits, "dataset_kwargs": None}
            # lm-eval would ask for the missing splits.
            config |= {key: None for split, key in SPLITS.items() if split not in splits}
            if config.get("fewshot_split") not in splits:
                config["fewshot_split"] = None
        try:
            return ConfigurableTask(config=config | overrides)
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

    def default_shots(self, name: str) -> int:
        """The number of few-shot samples in the task's definition."""
        return _definition(name).get("num_fewshot") or 0

    def _splits(self, name: str, shots: int, definition: dict[str, Any]) -> Any:
        """The task's files as a DatasetDict; everything that a run needs is checked here."""
        from datasets import Dataset, DatasetDict, disable_progress_bars

        disable_progress_bars()

        folder = self._folder(name)
        files = {split: _file(folder, split) for split in SPLITS}
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        asked = [split for split in ("test", "validation") if definition.get(SPLITS[split])]
        scored = next((split for split in asked if files[split] is not None), None)
        if scored is None:
            raise DataError(
                f"{folder}: {name} is scored on its {' or '.join(asked)} split; expected "
                f"{asked[0]}.jsonl (or .gz), found {found}."
            )
        if shots and files["train"] is None:
            raise DataError(
                f"{folder}: {name} draws its {shots} samples from the train split; expected "
                f"train.jsonl (or .gz), found {found}. Add it, or use no samples for this task: "
                f"--shots {shots},{name}=0."
            )
        wanted = {split: split == scored or (split == "train" and shots) for split in SPLITS}
        splits = {}
        for split, path in files.items():
            if path is not None and wanted[split]:
                try:
                    splits[split] = Dataset.from_list(_read(name, path))
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


def _file(folder: Path, split: str) -> Path | None:
    names = [f"{name}{ending}" for name in NAMES[split] for ending in ENDINGS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


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
