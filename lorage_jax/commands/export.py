"""`lorage export`: a model folder as a GGUF file for llama.cpp."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lorage_jax.llamacpp.export import export_gguf

if TYPE_CHECKING:
    from lorage_jax.commands.options import Export


def run(options: Export) -> dict[str, Any]:
    """Writes the file and returns its size in bytes, with the time in seconds."""
    began = time.time()
    export_gguf(options.model, options.gguf, options.type, options.pre, options.overwrite)
    size, seconds = options.gguf.stat().st_size, time.time() - began
    print(f"Written: {options.gguf} ({options.type}, {size / 1e6:.1f} MB) in {seconds:.1f} s")
    return {
        "gguf": str(options.gguf),
        "type": options.type,
        "bytes": size,
        "seconds": seconds,
    }
