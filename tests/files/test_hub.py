"""Folders on the Hub, against a client in the place of the Hub's: nothing leaves the machine."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from lorage_jax.errors import OutputError, WeightsError
from lorage_jax.files.hub import fetch, is_hub_name, portable, push
from lorage_jax.files.manifest import write_manifest


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What a client was asked to do: repositories made, files committed."""
    asked = SimpleNamespace(made=[], files={}, error=None)

    class Client:
        def __init__(self, **_):
            pass

        def create_repo(self, name, private, exist_ok):
            if asked.error:
                raise asked.error
            asked.made.append((name, private, exist_ok))

        def list_repo_files(self, name):
            return list(asked.files)

        def hf_hub_download(self, name, file):
            place = tmp_path / "cache" / file
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(asked.files[file])
            return str(place)

        def create_commit(self, name, operations, commit_message):
            for one in operations:
                if isinstance(one, huggingface_hub.CommitOperationDelete):
                    del asked.files[one.path_in_repo]
                    continue
                source = one.path_or_fileobj
                content = source if isinstance(source, bytes) else Path(source).read_bytes()
                asked.files[one.path_in_repo] = content
            return SimpleNamespace(commit_url=f"https://hub/{name}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    return asked


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "gen"
    home.mkdir()
    (home / "README.md").write_text("# a generator")
    (home / "generator.safetensors").write_bytes(b"x")
    place = {"relative": "../models/tiny", "path": "/home/me/models/tiny", "fingerprint": "f"}
    write_manifest(home, {"format": "lorage-generator/1", "cloud": place, "edge": place})
    (home / "notes.txt").write_text("not ours")
    (tmp_path / "secret").write_text("a manifest must not reach out of its folder")
    values = json.loads((home / "lorage.json").read_text())
    values["files"].append("../secret")
    (home / "lorage.json").write_text(json.dumps(values))
    return home


def test_push_sends_our_files_without_places_on_this_machine(hub, folder):
    assert push(folder, "me/gen", private=True) == "https://hub/me/gen/commit/1"
    assert hub.made == [("me/gen", True, True)]
    assert set(hub.files) == {"README.md", "generator.safetensors", "lorage.json"}
    sent = json.loads(hub.files["lorage.json"])
    assert sent["cloud"] == {"fingerprint": "f", "relative": "../tiny"} == sent["edge"]
    assert "/home/me" in (folder / "lorage.json").read_text()  # the folder itself is unchanged


def test_files_of_an_earlier_push_do_not_outlive_it(hub, folder):
    """One file of weights in the place of the shards before; what others added stays."""
    whole, shard = folder / "generator.safetensors", folder / "pool-1.safetensors"
    values = json.loads((folder / "lorage.json").read_text())
    shard.write_bytes(b"y")
    listed = values | {"files": [*values["files"], shard.name, "lost.json"]}
    (folder / "lost.json").write_text("{}")
    (folder / "lorage.json").write_text(json.dumps(listed))
    push(folder, "me/gen")
    del hub.files["lost.json"]  # by hand
    hub.files["LICENSE"] = b"mine"
    (folder / "lorage.json").write_text(json.dumps(values))
    whole.write_bytes(b"z")
    push(folder, "me/gen", card="# card")
    assert set(hub.files) == {"README.md", whole.name, "lorage.json", "LICENSE"}
    assert hub.files[whole.name] == b"z"
    (folder / "README.md").unlink()
    kept = [name for name in values["files"] if name != "README.md"]
    (folder / "lorage.json").write_text(json.dumps(values | {"files": kept}))
    push(folder, "me/gen")
    assert hub.files["README.md"] == b"# card"  # it may have been edited on the Hub


@pytest.mark.parametrize("foreign", [b"not json", b"[]", b'{"files": ["LICENSE"]}'])
def test_a_manifest_of_others_deletes_nothing(hub, folder, foreign):
    hub.files |= {"lorage.json": foreign, "LICENSE": b"mine"}
    push(folder, "me/gen")
    assert hub.files["LICENSE"] == b"mine"


def test_what_cannot_be_pushed(hub, folder, tmp_path):
    with pytest.raises(OutputError, match="expected OWNER/NAME"):
        push(folder, "gen")
    with pytest.raises(OutputError, match="not a folder that lorage_jax wrote"):
        push(tmp_path, "me/gen")
    hub.error = huggingface_hub.errors.LocalTokenNotFoundError("Token is required")
    with pytest.raises(OutputError, match="hf auth login"):
        push(folder, "me/gen")
    assert not hub.files


def answered(kind, status, text):
    """An error of the client, as for a response with this status."""
    request = SimpleNamespace(url="https://hub", headers={})
    return kind(text, response=SimpleNamespace(status_code=status, headers={}, request=request))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answered(errors.HfHubHTTPError, 401, "Unauthorized"), "hf auth login"),
        (answered(errors.HfHubHTTPError, 500, "me/offline-401 failed"), "me/offline-401 failed"),
        (answered(errors.RepositoryNotFoundError, 404, "me/offline-401"), "no such repository"),
        (ConnectionError("no route to 10.0.4.401"), "the Hub cannot be reached"),
    ],
)
def test_the_reason_is_the_status_and_not_a_word_in_the_text(hub, folder, error, says):
    hub.error = error
    with pytest.raises(OutputError, match=says) as raised:
        push(folder, "me/gen")
    assert ("auth login" in str(raised.value)) == (says == "hf auth login")


def test_a_folder_that_lacks_a_file_is_not_pushed(hub, folder):
    (folder / "README.md").unlink()
    with pytest.raises(OutputError, match=r"lorage.json lists README.md, which is not there"):
        push(folder, "me/gen")
    assert not hub.made


def test_offline_is_one_clear_message(folder):
    """As in all tests, HF_HUB_OFFLINE is set, so the real client refuses."""
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE is set"):
        push(folder, "me/gen")
    with pytest.raises(WeightsError, match=r"no folder me/gen here.*HF_HUB_OFFLINE is set"):
        fetch("me/gen")


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(Path("me/gen"))
    for other in ("gen", "/me/gen", "a/b/c", "../gen", "./gen", "~/gen"):
        assert not is_hub_name(Path(other)), other
    (tmp_path / "me" / "gen").mkdir(parents=True)
    assert not is_hub_name(Path("me/gen"))


def test_manifests_of_other_kinds_stay_as_they_are():
    values = {"format": "lorage-merged/1", "base": {"fingerprint": "f"}, "files": ["a"]}
    assert portable(values) == values
