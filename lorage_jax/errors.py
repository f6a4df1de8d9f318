"""Errors that a user can fix, and lists inside their messages.

Each error is a single message: what was expected, what was found, and what to do. The command line
prints it without a traceback and exits with a code other than 0.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

DENIED = "permission denied; change its permissions, or run as a user who may read it"


class LorageError(Exception):
    """Base class: bad input or an environment that cannot do what was asked."""


class ConfigError(LorageError):
    """A configuration value, or a combination of values, that is not valid."""


class WeightsError(LorageError):
    """A model, generator or card that cannot be read, or does not fit the others."""


class DataError(LorageError):
    """A data file or record that cannot be used. Names the file and the line."""


class OutputError(LorageError):
    """A path that cannot be written, or must not be."""


class Preempted(LorageError):
    """A run stopped by a signal, its state saved.

    Exit code 143, like that of a process ended by SIGTERM: launchers restart such a run.
    """


class TrainingError(LorageError):
    """A run that cannot continue: a loss that is not finite, a checkpoint of another config."""


def denied(path: str | Path) -> str:
    """The message for a file or folder that may not be read, or whose folder may not be opened."""
    closed = not os.access(Path(path).parent, os.X_OK)
    place = Path(path).parent if closed else path
    return f"{place} cannot be read: {DENIED}."


def listed(names: Sequence[str], most: int) -> str:
    """Joins names with commas, like `a, b and 3 more` if there are more than `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `; did you mean a, b?`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""


def bullets(problems: Sequence[str], most: int = 20) -> str:
    """At most `most` problems, one indented line each, and the number of all others."""
    more = [f"... and {len(problems) - most} more"] * (len(problems) > most)
    return "\n".join(f"  - {problem}" for problem in [*problems[:most], *more])


def joined(*notes: str | None) -> str | None:
    """The notes that say something, one below the other; None if there are none."""
    return "\n".join(filter(None, notes)) or None
