"""`lorage import`: a GGUF file as a Hugging Face folder."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lorage_jax.hf.import_gguf import import_gguf

if TYPE_CHECKING:
    from lorage_jax.commands.conversion_options import Import


def run(options: Import) -> dict[str, Any]:
    """Writes the folder and returns its size in bytes, with the time in seconds."""
    began = time.monotonic()
    import_gguf(options.gguf, options.out, options.dtype, options.pre, options.overwrite)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    seconds = time.monotonic() - began
    print(f"Written: {options.out} ({size / 1e6:.1f} MB) in {seconds:.1f} s")
    return {"out": str(options.out), "bytes": size, "seconds": seconds}
