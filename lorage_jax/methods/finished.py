"""The results of finished training runs, found by the folders of the runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lorage_jax.data.records import file_digest
from lorage_jax.errors import WeightsError
from lorage_jax.fields import home_path
from lorage_jax.files.manifest import MANIFEST, manifest_of
from lorage_jax.methods.method import Method, get_method
from lorage_jax.methods.training import RECORDED, get_trainable
from lorage_jax.models.model import Model


@dataclass(frozen=True)
class Finished:
    """A finished run: the name of its method, and the folder of what it left."""

    method: str
    folder: Path

    def load(self, edge: Model) -> Method:
        """Loads the method. Raises WeightsError if it was trained for another edge."""
        return get_method(self.method).load(edge, self.folder)

    @property
    def contents(self) -> str | dict[str, str]:
        """Digests that tell this result from others."""
        return result_digest(self.folder)


def find_finished(run: Path) -> Finished:
    """Finds what the training in the folder `run` left; no weights are read.

    Raises WeightsError if this is no folder of a training run, or the run has not finished.
    """
    run = home_path(run)
    try:
        values = json.loads((run / "config.json").read_text("utf-8"))
        recorded, _ = values["method"], values["steps"]
        known = recorded is None or isinstance(recorded, str)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        known, recorded = False, None
    if not known:
        raise WeightsError(
            f"{run} is not the folder of a training run: it has no config.json of one. Expected "
            "the --out or `out` of lorage train."
        )
    name = next((name for name, first in RECORDED.items() if first == recorded), str(recorded))
    result = run / get_trainable(name).result
    if not result.is_dir():
        raise WeightsError(
            f"{run} has no {result.name}/, so its training has not finished. Let "
            "`lorage train --resume` finish it."
        )
    return Finished(name, result)


def result_digest(folder: Path) -> str | dict[str, str]:
    """The digest of a result's manifest, which has the fingerprint of what was trained.

    Without one there, as for a LoRA or a folder of several results: the digests of all files. The
    config of an adapter from elsewhere counts, too: its alpha scales the weights.
    """
    if manifest_of(folder).get("fingerprint") is not None:
        return file_digest(folder / MANIFEST)
    kinds = (folder.glob("*.jsonl"), folder.glob(MANIFEST), folder.rglob("*.safetensors"))
    configs = folder.rglob("adapter_config.json")
    foreign = [file for file in configs if not (file.parent / MANIFEST).is_file()]
    files = sorted({*foreign, *(file for found in kinds for file in found)})
    return {str(file.relative_to(folder)): file_digest(file) for file in files}
