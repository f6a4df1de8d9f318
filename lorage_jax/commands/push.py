"""`lorage push`: a folder that lorage_jax wrote, to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorage_jax.commands.conversion_options import Push
from lorage_jax.errors import DataError
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.files.hub import check_push, push
from lorage_jax.files.manifest import manifest_of
from lorage_jax.generator.peft import adapted_fingerprint
from lorage_jax.hf.hub_card import README, with_part
from lorage_jax.hf.peft import CONFIG


def run(options: Push) -> dict[str, Any]:
    """Uploads the folder and returns the address of the commit."""
    check_push(options.folder, options.repository)  # before the scores are read
    card = None if options.scores is None else _scored(options.folder, options.scores)
    address = push(options.folder, options.repository, private=options.private, card=card)
    print(f"Pushed: {address}")
    return {"repository": options.repository, "commit": address}


def _scored(folder: Path, file: Path) -> str:
    """The folder's README with the scores of a file; the file on disk stays as it is."""
    from lorage_jax.report.hub_scores import scores_part
    from lorage_jax.report.inputs import read_inputs
    from lorage_jax.report.scores import with_tasks

    found = next(iter(with_tasks(read_inputs([file]))), None)  # beside sets of GPT4Tools
    if found is None:
        raise DataError(f"{file} holds no scores of tasks; expected a file of lorage eval --json.")
    model = found.result.model
    of = "generator_fingerprint" if model.get("generator") else "edge_fingerprint"
    mine = manifest_of(folder).get("fingerprint") if model.get("generator") else _of_model(folder)
    if mine is None:
        scored = "a generator" if model.get("generator") else "a model or adapter"
        raise DataError(
            f"{file} has scores of {scored}, and {folder} has no identity of one that they could "
            "be compared with. Score what is pushed."
        )
    if model.get(of) != mine:
        raise DataError(
            f"{file} has scores of another model than {folder}: its {of} is {model.get(of)}, the "
            f"folder's is {mine}. Score what is pushed."
        )
    text = (folder / README).read_text("utf-8") if (folder / README).is_file() else ""
    return with_part(text, "Scores", scores_part(found.result, found.part("provenance")))


def _of_model(folder: Path) -> str | None:
    """The identity that `lorage eval` records of a model, or of an adapter on its base."""
    if (folder / "config.json").is_file():
        return fingerprint(folder)
    return adapted_fingerprint(folder) if (folder / CONFIG).is_file() else None
