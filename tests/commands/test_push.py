"""`lorage push` offline, on a folder that is not ours, and on one that is."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from lorage_jax import cli, nano


@pytest.mark.parametrize(
    ("folder", "name", "says"),
    [
        (nano.GENERATOR, "me/gen", "HF_HUB_OFFLINE is set"),
        (nano.GENERATOR, "gen", "expected OWNER/NAME"),
        (Path("nowhere"), "me/gen", "not a folder that lorage_jax wrote"),
    ],
)
def test_what_cannot_be_pushed_is_one_message(folder, name, says, capsys):
    assert cli.main(["push", str(folder), name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lorage: ") and says in error and "Traceback" not in error


def test_a_generator_is_pushed(monkeypatch, capsys):
    sent = {}

    class Client:
        def __init__(self, **_):
            pass

        def create_repo(self, name, private, exist_ok):
            sent["repository"] = (name, private)

        def create_commit(self, name, operations, commit_message):
            sent["files"] = {one.path_in_repo for one in operations}
            return SimpleNamespace(commit_url="https://hub/me/gen/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    assert cli.main(["push", str(nano.GENERATOR), "me/gen", "--private"]) == 0
    assert sent["repository"] == ("me/gen", True)
    assert sent["files"] == {"README.md", "generator.safetensors", "lorage.json"}
    assert "https://hub/me/gen/commit/1" in capsys.readouterr().out
