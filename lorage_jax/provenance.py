"""Provenance of a result: command, versions, commit and machine, so that it can be made again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorage_jax import processor

FORMAT = "lorage-results/1"
PACKAGES = ("lorage_jax", "jax", "flax", "transformers", "lm_eval", "torch", "peft")


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """JSON facts about this run of `command`; they go into every file of results."""
    return {
        "format": FORMAT,
        "command": shlex.join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """The installed ones of the packages whose version can change a figure."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


def machine() -> dict[str, Any]:
    """The machine on which the figures were measured."""
    import jax  # heavy, and a command line that only parses does without it

    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu": processor.name(),
        "cpu_cores": os.cpu_count(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit of this package's checkout, and whether files differ from it; None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # site-packages may lie in somebody else's repository
        return None

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lorage_jax")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": bool(changed)}
