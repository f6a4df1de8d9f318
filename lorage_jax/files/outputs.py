"""Safe outputs: a folder or file appears complete at its path, or not at all.

Everything is written to a temporary sibling, then renamed into place. Our folders hold a
`lorage.json` with a list of their files. Only such a folder is ever replaced, and only if it holds
nothing else, so that no file of the user is deleted.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorage_jax.errors import OutputError, listed
from lorage_jax.fields import home_path
from lorage_jax.files.manifest import written_files

_log = logging.getLogger(__name__)

# Advice by errno. Other OSErrors are not about the path and pass unchanged.
_FULL = "Free some space there or choose another place."
_DENIED = "Choose a place that you may write to, or change its permissions."
_HINTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "Choose a file system that takes larger files.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOTDIR: "A part of this path is a file or a dead link; choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "A link in this path points to itself; choose another place.",
    errno.EXDEV: "The folder is a mount point; choose a folder below it.",
    errno.EBUSY: "The folder is a mount point or in use; choose a folder below it.",
    errno.EIO: "The disk or network share reports a fault; choose another place.",
    errno.ESTALE: "The network share went away; run again when it is back.",
}


def check_target(target: str | Path, overwrite: bool, *sources: str | Path | None) -> None:
    """Raises OutputError unless `new_folder(target)` may write there. Call it before long work.

    It refuses a file, a link, a non-empty folder that is not ours or must not be overwritten, and a
    path that is not writable. Nor may it be, or hold, one of the
    `sources`, which are read; those that are no path, such as names on the Hub, do not matter.
    """
    target = _absolute(target)
    with _clear_errors(target):
        mode = _mode(target)
        _check_ancestors(target)
        if mode is None:
            return
        if not stat.S_ISDIR(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a file"
            raise OutputError(f"{target} is {kind}. Expected a folder or nothing; choose another.")
        if not any(target.iterdir()):
            return
        if not overwrite:
            raise OutputError(
                f"{target} exists and is not empty. Choose another folder or, if lorage_jax wrote "
                "this one, pass --overwrite (Python: overwrite=True)."
            )
        strangers = _strangers(target, written_files(target))
        if not os.access(target, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        if strangers:
            raise OutputError(
                f"{target} holds files that lorage_jax did not write, so it is not replaced: "
                f"{listed(strangers, 10)}. Move that away or choose another folder."
            )
        replaced = target.resolve()
        for source in [home_path(one) for one in sources if one is not None]:
            if source.exists() and source.resolve().is_relative_to(replaced):
                raise OutputError(
                    f"{target} would be replaced, but {source} is read. Choose another folder."
                )


@contextmanager
def new_folder(target: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary sibling of `target` to fill; renames it to `target` at the end.

    On any exception only the temporary folder is removed. A folder that may be replaced later needs
    `write_manifest` as the last step inside. Raises OutputError.
    """
    target = _absolute(target)
    check_target(target, overwrite)
    with _clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _sibling(target, "partial")
    with _clear_errors(target, temporary):
        try:
            yield temporary
            _sync_tree(temporary)
            check_target(target, overwrite)  # another process may have written it meanwhile
            _move_in(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_file(path: str | Path, overwrite: bool) -> None:
    """Raises OutputError unless `write_file(path)` may write there."""
    path = _absolute(path)
    with _clear_errors(path):
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            # A rename would replace /dev/null or a link instead of writing into it.
            raise OutputError(f"{path} is not a plain file. Expected a file or nothing.")
        _check_ancestors(path)
        if mode is not None and not overwrite:
            raise OutputError(
                f"{path} exists. Choose another name, or pass --overwrite (Python: overwrite=True)."
            )


def write_file(path: str | Path, data: bytes | str, overwrite: bool) -> None:
    """Writes one file (str as UTF-8), completely or not at all. Raises OutputError."""
    with new_file(path, overwrite) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def new_file(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary sibling of `path` to write; renames it to `path` at the end.

    If several write it without `overwrite`, all but one fail. On any exception only the temporary
    file is removed. Raises OutputError.
    """
    path = _absolute(path)
    check_file(path, overwrite)
    temporary = path.parent / f".{path.name[:50]}.partial-{secrets.token_hex(4)}"
    with _clear_errors(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            if overwrite or not _link(temporary, path):
                check_file(path, overwrite)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    """Gives a file its name if nobody has it, in one step; False if that cannot be done."""
    try:
        os.link(temporary, path)
    except OSError:  # the name is taken, or the file system has no hard links
        return False
    return True


def _absolute(path: str | Path) -> Path:
    """The absolute path. A link in the last place is not resolved, so that it can be refused."""
    path = home_path(path)
    path = path.absolute() if path.name not in ("", "..") else path.resolve()
    if not path.name:
        raise OutputError(f"{path} is the root of the file system. Name a folder below it.")
    return path


def _mode(path: Path) -> int | None:
    """The mode of `path` itself, links not followed; None if it does not exist."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_ancestors(target: Path) -> None:
    ancestor = target.parent
    while not (ancestor.exists() or ancestor.is_symlink()):
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(ancestor))
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(ancestor))


def _strangers(folder: Path, files: set[str]) -> list[str]:
    """Contents of `folder` beyond `files`: other files, links, other kinds, empty folders."""
    found = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        for name in names + [f for f in folders if (here / f).is_symlink()]:
            path = here / name
            relative = path.relative_to(folder).as_posix()
            if relative not in files or not stat.S_ISREG(path.lstat().st_mode):
                found.append(relative)
        if not names and not folders:
            found.append(here.relative_to(folder).as_posix() + "/")
    return sorted(found)


def _sibling(target: Path, kind: str) -> Path:
    """A new empty sibling of `target`; mkdir and not mkdtemp, to apply the umask."""
    while True:
        path = target.parent / f".{target.name[:50]}.{kind}-{secrets.token_hex(4)}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _move_in(temporary: Path, target: Path) -> None:
    """Renames into place; an old folder of ours is set aside first and restored on failure."""
    if not target.exists() or not any(target.iterdir()):
        temporary.rename(target)  # takes the place of an empty folder, too
        _sync(target.parent)
        return
    files = written_files(target)
    aside = _sibling(target, "old")
    try:
        target.rename(aside)
        temporary.rename(target)
    except BaseException:
        if not target.exists():
            try:
                aside.rename(target)
            except OSError as error:
                raise OutputError(
                    f"Cannot write {target}, nor put the old folder back ({error.strerror}). "
                    f"It is complete in {aside}; rename it by hand."
                ) from error
        elif not any(aside.iterdir()):
            aside.rmdir()
        raise
    _sync(target.parent)
    _remove_ours(aside, files)


def _remove_ours(folder: Path, files: set[str]) -> None:
    """Deletes the named files, then the folders that are empty; everything else stays."""
    try:
        for root, folders, names in os.walk(folder, topdown=False):
            here = Path(root)
            for name in names:
                if (here / name).relative_to(folder).as_posix() in files:
                    (here / name).unlink()
            for name in folders:
                (here / name).rmdir()
        folder.rmdir()
    except OSError as error:
        # The new folder is in place, so the output did not fail.
        _log.warning("The replaced folder could not be removed fully: %s (%s)", folder, error)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    """fsync, so that delayed writes report a full disk; some file systems do not support it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _clear_errors(target: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turns an OSError about the target into an OutputError; other errors pass.

    Errors of a write have no file name. An error with a name must be about one of our paths: an
    unreadable source is not a fault of the output.
    """
    try:
        yield
    except OSError as error:
        ours = error.filename is None or any(
            Path(os.fsdecode(error.filename)).is_relative_to(place)
            or place.is_relative_to(os.fsdecode(error.filename))
            for place in (target, temporary or target)
        )
        if not ours or error.errno not in _HINTS:
            raise
        at = f" (at {error.filename})" if error.filename else ""
        raise OutputError(
            f"Cannot write {target}: {os.strerror(error.errno)}{at}. "
            f"{_HINTS[error.errno]} What was there before is unchanged."
        ) from error
