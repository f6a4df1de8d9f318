"""From a path to a model: a Hugging Face folder, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from lorage_jax.config import ModelConfig
from lorage_jax.files.gguf import is_gguf
from lorage_jax.hf.config import model_config
from lorage_jax.hf.folder import Folder, check_tensors, open_folder
from lorage_jax.hf.gguf import gguf_config, gguf_tokenizer, open_gguf


def open_model(path: Path, with_tokenizer: bool = False) -> Folder:
    """Opens config and weights of a folder or GGUF file, and on request the tokenizer.

    Raises WeightsError that lists every problem.
    """
    if not is_gguf(path):
        return open_folder(path, with_tokenizer)
    config, checkpoint = open_gguf(path)
    check_tensors(config, checkpoint, path)
    tokenizer = gguf_tokenizer(path) if with_tokenizer else None
    return Folder(config, checkpoint, tokenizer, {})


def read_model_config(path: Path) -> ModelConfig:
    """The config of a folder's or GGUF file's model, without its weights. Raises WeightsError."""
    return gguf_config(path) if is_gguf(path) else model_config(path)


def is_model(path: Path) -> bool:
    """True for a path at which there is a folder or a GGUF file."""
    return path.is_dir() or (path.exists() and is_gguf(path))
