"""The text part of a folder for images and text: its tensors under the text model's names.

Nothing here reads images. What only they need (vision tower, projector) is neither read nor
changed, and a merged folder keeps it, so it still is the whole model for transformers.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from lorage_jax.files.safetensors import Checkpoint
from lorage_jax.hf.config import is_multimodal, read_config

_log = logging.getLogger(__name__)

# Where the text model's tensors are in a multimodal file, before transformers 5 and since -> where
# they are in a text model's.
TEXT = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
IMAGES = ("vision_tower.", "multi_modal_projector.")


def text_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Names of the text model's tensors -> their names in the file; equal in a text model's."""
    names = {}
    multimodal = any(name.startswith(tuple(TEXT)) for name in checkpoint.names())
    for name in checkpoint.names():
        if not multimodal:
            names[name] = name
        elif not name.removeprefix("model.").startswith(IMAGES):
            stem = next((one for one in TEXT if name.startswith(one)), "")
            names[TEXT.get(stem, "") + name.removeprefix(stem)] = name
    return names


def text_part(folder: Path) -> Checkpoint:
    """Opens a folder's checkpoint; of a multimodal one only the text part, which a log line says.

    Raises WeightsError, which lists all problems.
    """
    checkpoint = Checkpoint.open(folder)
    names = text_names(checkpoint)
    left = len(checkpoint.tensors) - len(names)
    if left:
        _log.warning(
            "%s is a model for images and text. Its text part is used; %d tensors of the vision "
            "tower and its projector are not read, since nothing here computes images.",
            folder,
            left,
        )
    tensors = {name: checkpoint.tensors[stored] for name, stored in names.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)


def module_name(name: str, source: Path | None) -> str:
    """The name that a module or tensor of the text model has in transformers' model of a folder."""
    stem = "model."
    if not name.startswith(stem) or source is None or not (source / "config.json").is_file():
        return name
    if not is_multimodal(read_config(source)):
        return name
    return f"model.language_model.{name.removeprefix(stem)}"
