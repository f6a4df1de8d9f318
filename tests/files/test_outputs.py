import errno
import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorage_jax.errors import OutputError
from lorage_jax.files import outputs as folder_module
from lorage_jax.files.manifest import MANIFEST, write_manifest
from lorage_jax.files.outputs import (
    check_file,
    check_target,
    new_folder,
    write_file,
)


def make(target: Path, content: str = "one", overwrite: bool = False) -> None:
    with new_folder(target, overwrite=overwrite) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(content)
        (folder / "b.txt").write_text(content)
        write_manifest(folder, {"kind": "test"})


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_new_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "er" / "out"
    with new_folder(target, overwrite=False) as folder:
        assert folder.parent == target.parent and folder.name.startswith(".out.partial-")
        (folder / "a").write_text("x")
        assert not target.exists()
        write_manifest(folder, {"kind": "test"})
    assert tree(target.parent) == ["out", "out/a", f"out/{MANIFEST}"]
    manifest = json.loads((target / MANIFEST).read_text())
    assert manifest["kind"] == "test" and manifest["files"] == ["a", MANIFEST]
    assert manifest["lorage_jax"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        make(tmp_path / "out")
        write_file(tmp_path / "f", "x", overwrite=False)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / MANIFEST).stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_removes_only_the_own_temporary(tmp_path, error):
    stale = tmp_path / ".out.partial-dead"
    stale.mkdir()
    (stale / "kept").write_text("x")
    with pytest.raises(error), new_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "a").write_text("x")
        raise error
    assert tree(tmp_path) == [".out.partial-dead", ".out.partial-dead/kept"]


def test_an_existing_folder_is_refused_without_overwrite(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(OutputError, match="exists and is not empty"):
        make(tmp_path / "out", "two")
    assert (tmp_path / "out" / "b.txt").read_text() == "one"


def test_overwrite_replaces_a_folder_of_ours(tmp_path):
    make(tmp_path / "out")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "c.txt").write_text("two")
        write_manifest(folder, {})
    assert tree(tmp_path) == ["out", "out/c.txt", f"out/{MANIFEST}"]


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert (tmp_path / "out" / "b.txt").exists()


@pytest.mark.parametrize("stranger", ["notes.txt", "sub/notes.txt", "empty/", "link", "b.txt"])
def test_a_stranger_forbids_overwriting(tmp_path, stranger):
    make(tmp_path / "out")
    path = tmp_path / "out" / stranger
    if stranger.endswith("/"):
        path.mkdir()
    elif stranger in ("link", "b.txt"):  # a link in place of one of our files is the user's, too
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path)
    else:
        path.write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=stranger):
        make(tmp_path / "out", overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"files": 3}', '{"files": [1]}', "{}"])
def test_a_folder_without_a_manifest_is_never_replaced(tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    if manifest is not None:
        (tmp_path / "out" / MANIFEST).write_text(manifest)
    with pytest.raises(OutputError, match="did not write it"):
        make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_a_stranger_that_comes_during_the_work_is_kept(tmp_path):
    make(tmp_path / "out")
    with (
        pytest.raises(OutputError, match="late"),
        new_folder(tmp_path / "out", overwrite=True) as folder,
    ):
        write_manifest(folder, {})
        (tmp_path / "out" / "late.txt").write_text("mine")
    assert (tmp_path / "out" / "late.txt").read_text() == "mine"
    assert (tmp_path / "out" / "b.txt").read_text() == "one"


def test_deleting_the_old_folder_spares_what_is_not_ours(tmp_path, monkeypatch):
    """Even if a file appears after the last check."""
    make(tmp_path / "out")
    rename = Path.rename

    def slow_rename(self, to):
        if self.name == "out":
            (self / "late.txt").write_text("mine")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", slow_rename)
    make(tmp_path / "out", "two", overwrite=True)
    assert (tmp_path / "out" / "b.txt").read_text() == "two"
    assert [p.read_text() for p in tmp_path.glob(".out.old-*/*")] == ["mine"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_failing_second_rename_is_rolled_back(tmp_path, monkeypatch, error):
    make(tmp_path / "out")
    before = tree(tmp_path)
    rename = Path.rename

    def failing(self, to):
        if ".partial-" in self.name:
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        make(tmp_path / "out", "two", overwrite=True)
    assert tree(tmp_path) == before
    assert (tmp_path / "out" / "b.txt").read_text() == "one"


def test_files_links_and_impossible_places_are_refused_up_front(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    for name, words in [
        ("file", "is a file"),
        ("link", "is a link"),
        ("dead", "is a link"),
        ("file/out", "Not a directory"),
        ("dead/out", "Not a directory"),
        ("n" * 300, "too long"),
    ]:
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=words):
                check_target(tmp_path / name, overwrite)
            with pytest.raises(OutputError, match=words):
                make(tmp_path / name, overwrite=overwrite)
    with pytest.raises(OutputError, match="root of the file system"):
        check_target("/", True)
    check_target(tmp_path / "link" / "out", False)  # a link on the way is fine
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dead", "file", "link", "real"]


def test_no_permission_is_told_up_front(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OutputError, match=r"Permission denied.*Choose a place"):
        check_target(tmp_path / "out", False)
    with pytest.raises(OutputError, match="Permission denied"):
        check_file(tmp_path / "out", False)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_os_error_becomes_one_clear_message(tmp_path, code):
    with (
        pytest.raises(OutputError, match=r"Cannot write .*out: ") as caught,
        new_folder(tmp_path / "out", overwrite=False),
    ):
        raise OSError(code, os.strerror(code))
    assert os.strerror(code) in str(caught.value)
    assert tree(tmp_path) == []


def test_an_os_error_about_a_source_passes_unchanged(tmp_path):
    with (
        pytest.raises(PermissionError, match="source"),
        new_folder(tmp_path / "out", overwrite=False),
    ):
        raise PermissionError(errno.EACCES, "denied", "/somewhere/source.bin")
    assert tree(tmp_path) == []


def test_a_full_disk(tiny_disk):
    with (
        pytest.raises(OutputError, match=r"No space left.*Free some space"),
        new_folder(tiny_disk / "out", overwrite=False) as folder,
    ):
        (folder / "big").write_bytes(b"x" * 200_000)
    with pytest.raises(OutputError, match="No space left"):
        write_file(tiny_disk / "card.json", b"x" * 200_000, overwrite=False)
    assert tree(tiny_disk) == []


def test_a_read_only_disk(tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for target in (tiny_disk / "out", tiny_disk / "new" / "out"):
        with pytest.raises(OutputError):
            check_target(target, False)
        with pytest.raises(OutputError):
            write_file(target, "x", overwrite=False)


def test_a_failing_sync_fails_the_output(tmp_path, monkeypatch):
    """With delayed writes, a full disk shows only then."""

    def full(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(folder_module.os, "fsync", full)
    with (
        pytest.raises(OutputError, match="No space left"),
        new_folder(tmp_path / "out", overwrite=False) as folder,
    ):
        (folder / "a").write_text("x")
    assert tree(tmp_path) == []


def test_a_mount_point_is_refused_and_kept(tiny_disk):
    with pytest.raises(OutputError, match="mount point"):
        make(tiny_disk)
    assert not list(tiny_disk.parent.glob(".disk.*"))


def test_write_file(tmp_path):
    path = tmp_path / "new" / "card.json"
    write_file(path, "ä", overwrite=False)
    assert path.read_bytes() == "ä".encode()
    with pytest.raises(OutputError, match="exists"):
        write_file(path, b"two", overwrite=False)
    write_file(path, b"two", overwrite=True)
    assert path.read_bytes() == b"two" and tree(path.parent) == ["card.json"]
    for bad in (path.parent, Path(os.devnull), Path("/dev/stdout")):
        with pytest.raises(OutputError, match="not a plain file"):
            write_file(bad, b"x", overwrite=True)


def test_one_of_two_that_write_a_file_at_once_succeeds(tmp_path, monkeypatch):
    """Both have found that there is none, before either writes."""
    check, both = folder_module.check_file, threading.Barrier(2)

    def checked(path, overwrite):
        check(path, overwrite)
        both.wait(10)

    def write(text):
        try:
            write_file(tmp_path / "card", text, overwrite=False)
        except OutputError as error:
            return str(error)
        return text

    monkeypatch.setattr(folder_module, "check_file", checked)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(write, ("one", "two")))
    refused, written = sorted(found, key=lambda text: text in ("one", "two"))
    assert "exists" in refused and (tmp_path / "card").read_text() == written
    assert tree(tmp_path) == ["card"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def without(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", without)
    write_file(tmp_path / "card", "one", overwrite=False)
    with pytest.raises(OutputError, match="exists"):
        write_file(tmp_path / "card", "two", overwrite=False)
    assert tree(tmp_path) == ["card"] and (tmp_path / "card").read_text() == "one"


def test_write_file_keeps_the_old_one_on_failure(tmp_path, monkeypatch):
    write_file(tmp_path / "card", "old", overwrite=False)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "card", "new", overwrite=True)
    assert tree(tmp_path) == ["card"] and (tmp_path / "card").read_text() == "old"


def test_the_manifest_keeps_its_own_fields(tmp_path):
    with pytest.raises(ValueError, match="files"):
        write_manifest(tmp_path, {"files": []})
