"""Opens a Hugging Face folder: its config and its tensors, under the names that the model has.

Training tools and other classes of transformers write the same tensors under other names. They are
recognised where one prefix explains all of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.errors import WeightsError, bullets, denied
from lorage_jax.files.safetensors import FLOATS, Checkpoint, Tensors
from lorage_jax.hf import tables
from lorage_jax.hf.config import model_config, no_folder, read_config
from lorage_jax.hf.leftovers import describe_leftover, describe_missing, is_unused
from lorage_jax.hf.multimodal import text_part
from lorage_jax.hf.peft import CONFIG, named_base
from lorage_jax.hf.quantised import refuse_quantised_config, refuse_quantised_tensors
from lorage_jax.hf.tokenizer import tokenizer_or_none

T = TypeVar("T")
HEAD, EMBED, BASE = "lm_head.weight", "embed_tokens.weight", "model."
# Parts that training tools put into names: DistributedDataParallel, torch.compile, FSDP.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Folder(NamedTuple):
    """An opened folder, or a file that holds the same.

    Attributes:
        config: tied_head is False if the file's head differs from its embeddings.
        checkpoint: its tensors, under the model's names.
        tokenizer: None if the folder has none, or if it was not asked for.
        stored: the names in the file of the tensors that have others there.
    """

    config: ModelConfig
    checkpoint: Tensors
    tokenizer: Any
    stored: dict[str, str]


def open_folder(folder: Path, with_tokenizer: bool = False) -> Folder:
    """Opens config and weights, and on request the tokenizer.

    Raises WeightsError that lists every problem.
    """
    if not folder.is_dir():
        raise WeightsError(no_folder(folder))
    if not os.access(folder, os.R_OK | os.X_OK):
        raise WeightsError(denied(folder))
    _refuse_adapter(folder)
    refuse_quantised_config(folder, read_config(folder))  # without one, nothing else matters
    refuse_quantised_tensors(folder)
    problems: list[str] = []
    config = _attempt(model_config, folder, problems)
    checkpoint = _attempt(text_part, folder, problems)
    tokenizer = None
    if with_tokenizer and config is not None:  # else transformers refuses it for the same reason
        tokenizer = _attempt(tokenizer_or_none, folder, problems)
    if config is None or checkpoint is None or problems:
        raise WeightsError("\n".join(problems))
    stored = _stored_names(config, checkpoint)
    own = {there: here for here, there in stored.items()}
    checkpoint = dataclasses.replace(
        checkpoint,
        tensors={own.get(name, name): tensor for name, tensor in checkpoint.tensors.items()},
    )
    config = _head(config, checkpoint)
    check_tensors(config, checkpoint, folder)
    return Folder(config, checkpoint, tokenizer, stored)


def _attempt(read: Callable[[Path], T], folder: Path, problems: list[str]) -> T | None:
    """Returns `read(folder)`; on a WeightsError, adds it to `problems` and returns None."""
    try:
        return read(folder)
    except WeightsError as error:
        problems.append(str(error))
        return None


def _refuse_adapter(folder: Path) -> None:
    """Raises WeightsError if the folder holds an adapter, alone or beside a model."""
    path = folder / CONFIG
    if not path.is_file():
        return
    if (folder / "config.json").is_file():
        raise WeightsError(
            f"{folder} holds an adapter ({CONFIG}) beside a model, and transformers would apply "
            f"it. Move {CONFIG} and adapter_model.safetensors to a folder of their own; then "
            "`--adapter FOLDER` (Python: load_adapter(FOLDER, edge)) applies it, and without it "
            "the model is the base."
        )
    base = named_base(folder) or "not recorded"
    raise WeightsError(
        f"{folder} is a PEFT adapter, not a model. Load its base ({base}) and "
        f"apply it: `--model BASE --adapter {folder}` (Python: load_adapter({str(folder)!r}, "
        "edge))."
    )


def _stored_names(config: ModelConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """The model's name -> the file's, of all tensors that the file calls otherwise.

    Names may lack `model.` (saved by AutoModel), have a prefix in front, or wrappers' parts inside.
    Empty unless one prefix explains them.
    """
    wanted = list(tables.tensor_shapes(config))
    plain: dict[str, str] = {}
    for name in checkpoint.names():
        clean = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if clean in plain:
            return {}
        plain[clean] = name
    found: dict[str, str] = {}
    anchor = next(name for name in wanted if ".layers.0." in name)
    short = anchor.removeprefix(BASE)
    fits = {
        (name.removesuffix(anchor), "")
        if name.endswith(anchor)
        else (name.removesuffix(short), BASE)
        for name in plain
        if name == short or name.endswith((f".{short}", anchor))
    }
    if len(fits) == 1:
        prefix, cut = fits.pop()
        for name in [*wanted, HEAD]:
            there = plain.get(prefix + name.removeprefix(cut))
            if there not in (None, name):
                found[name] = there
    embed = next(name for name in wanted if name.endswith(EMBED))
    if config.tied_head and embed not in {*plain, *found} and found.get(HEAD, HEAD) in checkpoint:
        found[embed] = found.pop(HEAD, HEAD)  # the one table went by its other name
    return found


def _head(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The config, untied if the file's head differs from its embeddings, as in transformers."""
    embed = tables.row(config, ("embed",)).name
    if not config.tied_head or HEAD not in checkpoint or embed not in checkpoint:
        return config
    read = checkpoint.raw if checkpoint.dtype(HEAD) == checkpoint.dtype(embed) else checkpoint.read
    if checkpoint.shape(HEAD) == checkpoint.shape(embed) and np.array_equal(
        read(HEAD), read(embed)
    ):
        return config
    return dataclasses.replace(config, tied_head=False)


def check_tensors(config: ModelConfig, checkpoint: Tensors, where: Path) -> None:
    """Raises WeightsError unless the tensors are exactly the model's, in name and shape.

    `where`: the folder, or the file that holds config and tensors.
    """
    expected, missing, problems = tables.tensor_shapes(config), [], []
    for name, want in expected.items():
        if name not in checkpoint:
            missing.append(f"{name} is missing; expected shape {want}")
        elif checkpoint.shape(name) != want:
            problems.append(f"{name} has shape {checkpoint.shape(name)}; config says {want}")
        elif checkpoint.dtype(name) not in FLOATS.values():
            problems.append(f"{name} is {checkpoint.dtype(name)}; expected floating point")
    if config.tied_head:
        expected[HEAD] = ()  # equal to the embeddings
    extra = [name for name in checkpoint.names() if name not in expected]
    extra = [name for name in extra if not is_unused(config, checkpoint, name)]
    problems = missing + problems
    problems += [
        f"{name} {checkpoint.shape(name)} is not part of a {config.family}" for name in extra
    ]
    if problems:
        looks = describe_missing(config, checkpoint, len(missing), len(expected))
        hints = (
            [looks] if looks else [hint for hint in map(describe_leftover(config), extra) if hint]
        )
        folder = where.is_dir()
        raise WeightsError(
            f"{where}: the weights do not fit {'config.json' if folder else 'its keys'} "
            f"({len(problems)} problem{'s' * (len(problems) > 1)}):\n{bullets(problems)}"
            + "".join(f"\n{hint}" for hint in dict.fromkeys(hints) if folder)
        )
