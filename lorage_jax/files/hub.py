"""Folders on the Hugging Face Hub: fetched by name, and pushed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lorage_jax.errors import OutputError, WeightsError, listed
from lorage_jax.files.manifest import MANIFEST, manifest_of

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# No code and no pickles.
FETCHED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.md", "LICENSE*")
README = "README.md"  # people edit it on the Hub
UNAUTHORISED = 401  # status of a request without a valid token
# Files by one of which a folder is a generator, a model or an adapter.
MAIN = ("generator.safetensors", "config.json", "adapter_config.json")
EXPECTED = "Expected a generator, or an exported model or adapter"
LOCAL = ("path", "relative")  # places on this machine, which a manifest records for each model


def is_hub_name(path: Path) -> bool:
    """True for `owner/name` if there is no such folder here."""
    return HUB_NAME.fullmatch(path.as_posix()) is not None and not path.exists()


def fetch(name: str) -> Path:
    """The folder of the repository `owner/name`, from the Hub or from its cache.

    Raises WeightsError if it is in neither.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except Exception as error:
        raise WeightsError(
            f"there is no folder {name} here, and the Hub did not give a repository of that name: "
            f"{_reason(error)}."
        ) from None


def push(folder: Path, repository: str, *, private: bool = False, card: str | None = None) -> str:
    """Uploads a folder that lorage_jax wrote; returns the address of the commit.

    The manifest is uploaded without the places of models on this machine, and README.md with the
    text `card`, if there is one. Files of an earlier push that are not among those of this one are
    deleted in the same commit; others in the repository, and a README.md, stay.

    Raises OutputError as `check_push` does, and with the Hub's reason if it refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    names, values = check_push(folder, repository), manifest_of(folder)
    changed = {MANIFEST: json.dumps(portable(values), indent=2).encode() + b"\n"}
    if card is not None:
        changed[README] = card.encode()
    added = [
        CommitOperationAdd(name, path_or_fileobj=changed.get(name, str(folder / name)))
        for name in sorted({*names, *changed})
    ]
    try:
        api = HfApi(library_name="lorage_jax")
        api.create_repo(repository, private=private, exist_ok=True)
        stale = pushed_before(api, repository) - {*names, *changed, README}
        operations = [*added, *map(CommitOperationDelete, sorted(stale))]
        commit = api.create_commit(
            repository, operations, commit_message=f"lorage push: {values['format']}"
        )
    except Exception as error:
        raise OutputError(f"{repository} was not pushed: {_reason(error)}.") from None
    return str(commit.commit_url)


def pushed_before(api: Any, repository: str) -> set[str]:
    """The names of files in a repository that its manifest lists: those of an earlier push."""
    present = set(api.list_repo_files(repository))
    if MANIFEST not in present:
        return set()
    values = manifest_of(Path(api.hf_hub_download(repository, MANIFEST)).parent)
    files = values.get("files")
    if "format" not in values or not isinstance(files, list):
        return set()
    return present & set(map(str, files))


def check_push(folder: Path, repository: str) -> list[str]:
    """The names of the files that `push` uploads.

    Raises OutputError for a folder that lorage_jax did not write, one that is neither a generator
    nor a model or adapter, one that lacks a file of its manifest, and a repository's name without
    an owner.
    """
    values = manifest_of(folder)
    files = values.get("files")
    if "format" not in values or not isinstance(files, list):
        raise OutputError(
            f"{folder} is not a folder that lorage_jax wrote. {EXPECTED}: a folder with a "
            f"{MANIFEST}."
        )
    if not set(MAIN) & set(map(str, files)):
        inside = [str(name) for name in files if str(name).endswith(f"/{MANIFEST}")]
        found = " or ".join(str((folder / name).parent) for name in inside)
        hint = f": {found}." if found else "."
        raise OutputError(f"{folder} cannot be pushed. {EXPECTED}{hint}")
    if HUB_NAME.fullmatch(repository) is None:
        raise OutputError(f"the repository is {repository!r}; expected OWNER/NAME.")
    home = folder.resolve()
    names = [name for name in map(str, files) if (home / name).resolve().is_relative_to(home)]
    if lost := [name for name in names if not (home / name).is_file()]:
        raise OutputError(
            f"{folder} is not whole: its {MANIFEST} lists {listed(lost, 3)}, which is not there. "
            "Write the folder again."
        )
    return names


def portable(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest without places on this machine; a model's folder keeps its name."""
    kept = dict(values)
    for role in ("cloud", "edge"):
        if isinstance(entry := values.get(role), dict) and set(entry) & set(LOCAL):
            place = Path(str(entry.get("relative") or entry.get("path")))
            kept[role] = {name: value for name, value in entry.items() if name not in LOCAL}
            kept[role]["relative"] = f"../{place.name}"
    return kept


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if any(isinstance(one, OfflineModeIsEnabled) for one in (error, error.__cause__)):
        return "HF_HUB_OFFLINE is set, so nothing is asked. Unset it"
    refused = isinstance(error, HfHubHTTPError) and error.response.status_code == UNAUTHORISED
    if refused or isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in, or there is no such repository. Run `hf auth login`"
    if isinstance(error, GatedRepoError):
        return "access to it must be asked for on its page"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or you may not see it"
    first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(error, HfHubHTTPError):
        return first
    return f"the Hub cannot be reached ({first})"
