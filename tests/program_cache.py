"""Compiled programs, kept between runs of the tests; delete the folder at any time."""

import os
from pathlib import Path

from lorage_jax import compilation

ROOT = Path(os.environ.get("LORAGE_TEST_CACHE", Path.home() / ".cache" / "lorage_jax" / "tests"))
FOLDER = compilation.cache_folder(ROOT)


def keep() -> None:
    """Has JAX keep all programs, also those of the processes that tests start.

    Small ones are a third of the time of tests that use a model. There are thousands, and with a
    size of its own JAX looks at all of them whenever it keeps one: `prune` does so once.
    """
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(FOLDER),
        "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def prune(folder: Path = FOLDER, most_bytes: int = compilation.MOST_BYTES) -> None:
    """Removes the programs that were read longest ago, until the rest take `most_bytes` or less.

    Where the file system does not note reading, those that were written first go first.
    """
    found = sorted(filter(None, map(_stat, folder.glob("*"))))
    size = sum(size for _, size, _ in found)
    for _, bytes_, path in found:
        if size <= most_bytes:
            break
        path.unlink(missing_ok=True)
        size -= bytes_


def _stat(path: Path) -> tuple[float, int, Path] | None:
    """Time of access, size and path; None if another process has removed it."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_atime, stat.st_size, path
