"""Experiment files: Python files whose `config()` returns a configuration."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from lorage_jax.config import CompareConfig, ExperimentConfig, PretrainConfig
from lorage_jax.errors import ConfigError, LorageError

EXPERIMENTS = Path("experiments")
COMMANDS = {
    ExperimentConfig: "lorage train",
    PretrainConfig: "lorage pretrain",
    CompareConfig: "lorage compare",
}

Config = TypeVar("Config", ExperimentConfig, PretrainConfig, CompareConfig)


def load_experiment(name: str | Path, kind: type[Config] = ExperimentConfig) -> Config:
    """Runs `config()` of an experiment file and returns its configuration.

    Args:
        name: the file, or its name below `experiments/` (`paper/tinyllama`). `FILE:STAGE` calls
            `config(STAGE)`.
        kind: the expected configuration.

    Raises ConfigError for any error in the file, and if `config()` does not return a `kind`.
    """
    path, stage = _find(str(name))
    # A name of its own: a sibling, or an installed package, may be called like the file.
    spec = importlib.util.spec_from_file_location(f"lorage_experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; expected one that defines config().")
    module = importlib.util.module_from_spec(spec)
    try:
        with _siblings(path.absolute().parent):
            sys.modules[spec.name] = module  # where dataclasses look up their annotations
            spec.loader.exec_module(module)
            if not callable(getattr(module, "config", None)):
                raise ConfigError(f"defines no function config(), which returns {_named(kind)}.")
            config = module.config(*stage)
    except LorageError as error:
        raise ConfigError(f"{path}{_line(error, path)}: {error}") from None
    except (
        Exception,
        SystemExit,
    ) as error:  # in the user's code: name its line only
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}{_line(error, path)}: {what}") from None
    if type(config) in COMMANDS and not isinstance(config, kind):
        raise ConfigError(
            f"{path} is for `{COMMANDS[type(config)]}`: config() returned {_named(type(config))}; "
            f"`{COMMANDS[kind]}` needs {_named(kind)}."
        )
    if not isinstance(config, kind):
        found = type(config).__name__
        raise ConfigError(f"{path}: config() returned {found}, not {kind.__name__}.")
    return config


def _find(name: str) -> tuple[Path, tuple[str, ...]]:
    """The file of an experiment, and the arguments of `config`: the stage, if one is named."""
    file, _, stage = name.rpartition(":")
    pairs = [(name, ())] + [(file, (stage,))] * bool(file)
    for text, stages in pairs:
        for path in (Path(text), EXPERIMENTS / f"{text}.py"):
            if path.is_file():
                return path, stages
    path = Path(file or name)
    if path.exists():
        raise ConfigError(f"{path} is not a Python file; expected one that defines config().")
    names = sorted(str(p) for p in EXPERIMENTS.rglob("*.py"))
    near = difflib.get_close_matches(str(path), names, n=3, cutoff=0.3) or names
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise ConfigError(f"there is no experiment file {path}.{hint}")


def _named(kind: type) -> str:
    return f"{'an' if kind is ExperimentConfig else 'a'} {kind.__name__}"


@contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Makes the files of the folder importable, and forgets them at the end.

    No bytecode is written: it would lie beside the user's files, and stand for a file that changes
    within the second.
    """
    known, silent = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # the folder may be seconds old
    try:
        yield
    finally:
        sys.dont_write_bytecode = silent
        with suppress(ValueError):  # the file may have changed it itself
            sys.path.remove(str(folder))
        for name in sys.modules.keys() - known:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == folder:
                del sys.modules[name]  # another experiment may have a sibling with the same name


def _line(error: BaseException, path: Path) -> str:
    """`, line N`: the innermost line of the file in the traceback; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename in (None, str(path.absolute())):
        return f", line {error.lineno}" if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(path.absolute())]
    return f", line {lines[-1]}" if lines else ""
