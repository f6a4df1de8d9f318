"""`lorage export`: a model folder as a GGUF file for llama.cpp."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorage_jax.data.templates import Template
from lorage_jax.generator.card import load_card
from lorage_jax.hf.folder import open_folder
from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.models.model import Model

if TYPE_CHECKING:
    from lorage_jax.commands.options import Export


def run(options: Export) -> dict[str, Any]:
    """Writes the file and returns its size in bytes, with the time in seconds."""
    began = time.time()
    export_gguf(
        options.model,
        options.gguf,
        options.type,
        options.pre,
        options.overwrite,
        None if options.turns is None else _turns(options.turns, options.model),
    )
    size, seconds = options.gguf.stat().st_size, time.time() - began
    print(f"Written: {options.gguf} ({options.type}, {size / 1e6:.1f} MB) in {seconds:.1f} s")
    return {
        "gguf": str(options.gguf),
        "type": options.type,
        "bytes": size,
        "seconds": seconds,
    }


def _turns(card: Path, folder: Path) -> Template:
    """The turns in which the folder's model answers under a card."""
    opened = open_folder(folder, with_tokenizer=True)
    return load_card(card).turns(Model(opened.config, {}, opened.tokenizer, folder))
