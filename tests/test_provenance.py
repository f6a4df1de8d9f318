"""The recorded origin of results."""

import json
import subprocess

import pytest

from lorage_jax import provenance as module
from lorage_jax.provenance import git_state, provenance


def test_the_command_can_be_given_again():
    found = provenance(["lorage", "eval", "--model", "my models/a", "--limit", "3"])
    assert found["command"] == "lorage eval --model 'my models/a' --limit 3"
    assert found["format"] == "lorage-results/1"
    assert {"python", "jax", "flax", "transformers"} <= set(found["versions"])
    assert found["machine"]["devices"] == 8 and found["machine"]["cpu"]
    assert json.loads(json.dumps(found)) == found


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package file, as if this package were in it."""
    package = tmp_path / "lorage_jax"
    package.mkdir()
    (package / "provenance.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    return tmp_path


def git(folder, *args):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", *identity, *args], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_the_commit_and_whether_files_differ_from_it(checkout):
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state() == {"commit": commit, "changed": False}
    (checkout / "result.json").write_text("{}")  # not the package's
    assert git_state() == {"commit": commit, "changed": False}
    (checkout / "lorage_jax" / "provenance.py").write_text("x = 1\n")
    assert git_state() == {"commit": commit, "changed": True}


def test_an_installed_package_has_no_commit(checkout):
    assert git_state() is None
    git(checkout, "init", "-q")  # a repository without a commit
    assert git_state() is None
