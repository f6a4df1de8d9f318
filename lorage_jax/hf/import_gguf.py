"""Writes a GGUF file as a Hugging Face folder, with one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import home_path
from lorage_jax.files.gguf import is_gguf
from lorage_jax.files.manifest import MODEL, write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.files.safetensors import FLOATS, SINGLE, Streamed, main_dtype, write_streamed
from lorage_jax.hf.config import to_hf_config
from lorage_jax.hf.folder import Folder
from lorage_jax.hf.gguf import gguf_tokenizer
from lorage_jax.hf.save import check_describable
from lorage_jax.hf.source import open_model
from lorage_jax.hf.tokenizer import load_tokenizer, save_tokenizer

# Spaces, digits, cases and other scripts, which ways to split texts treat differently.
PROBE = "  It's 12345 o'clock, DON'T\n\n\tsay:  naïve 你好 🙂!!  x=1 </s>"


def import_gguf(
    path: str | Path,
    out: str | Path,
    dtype: str | None = None,
    pre: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the model in a GGUF file as a Hugging Face folder.

    Args:
        path: the file, in any type that the gguf package dequantises.
        out: the folder to write.
        dtype: float32, bfloat16 or float16 for all tensors. By default, those of a floating type
            keep it, and quantised ones become float32.
        pre: llama.cpp's name of the way in which the tokenizer splits texts, if the file's is not
            known.
        overwrite: replace the folder if lorage_jax wrote it.

    Raises WeightsError for a file that is not read here, ConfigError for a model that no
    config.json describes, and OutputError.
    """
    path = home_path(path)
    if dtype is not None and dtype not in FLOATS:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(FLOATS)}, or None.")
    check_target(out, overwrite, path)
    if not is_gguf(path):
        raise WeightsError(f"{path} is not a GGUF file.")
    opened = open_model(path)._replace(tokenizer=gguf_tokenizer(path, pre))
    with new_folder(out, overwrite=overwrite) as folder:
        write_folder(opened, folder, dtype)
        write_manifest(folder, {"format": MODEL})


def write_folder(
    opened: Folder,
    folder: Path,
    dtype: str | None,
    replace: Mapping[str, Callable[[], np.ndarray]] | None = None,
) -> None:
    """Writes config, weights and tokenizer of an opened GGUF file into a new folder.

    `replace`: functions that make other values of some tensors, by name; without `dtype`, these
    are stored in that of the largest tensor, so that one that is 16 bits wide among quantised ones
    does not round an update. Raises ConfigError for a
    model that no config.json describes, and WeightsError for a tokenizer that transformers would
    replace by another.
    """
    config, tensors, replace = opened.config, opened.checkpoint, replace or {}
    check_describable(config)
    main = main_dtype(tensors)
    spelled = {there: name for name, there in FLOATS.items()}
    values = to_hf_config(config, dtype or spelled[main])
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    if opened.tokenizer is not None:
        save_tokenizer(opened.tokenizer, folder)
        _check_tokenizer(opened.tokenizer, folder, config.family)
    streamed = []
    for name in tensors.names():
        own = main if name in replace else tensors.dtype(name)
        make = replace.get(name, lambda name=name: tensors.read(name))
        kind = own if dtype is None else FLOATS[dtype]
        streamed.append(Streamed(name, kind, tensors.shape(name), make))
    write_streamed(folder / SINGLE, streamed)


def _check_tokenizer(tokenizer: Any, folder: Path, family: str) -> None:
    """Raises WeightsError unless transformers loads the tokenizer of a folder as it was saved."""
    loaded = load_tokenizer(folder)
    ids = [one(PROBE)["input_ids"] for one in (tokenizer, loaded)]
    splits = [one.backend_tokenizer.pre_tokenizer for one in (tokenizer, loaded)]
    pieces = [split.pre_tokenize_str(PROBE) for split in splits if all(splits)]
    if ids[0] != ids[1] or pieces[:1] != pieces[1:]:
        raise WeightsError(
            f"the class of transformers for a {family} splits texts otherwise than the tokenizer "
            "in this file, so that its folder would not be the same model."
        )
