"""`lorage generate`: text from a model folder, streamed to the terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from lorage_jax.commands.adapters import load_adapted
from lorage_jax.data.records import read_text
from lorage_jax.data.templates import edge_prompt, edge_prompt_with_system, encode
from lorage_jax.errors import ConfigError
from lorage_jax.hf.export import is_merged
from lorage_jax.infer.generate import generate

if TYPE_CHECKING:
    from lorage_jax.commands.options import Generate

DEFAULT_TOKENS = 128  # without --max-new-tokens


def run(options: Generate) -> dict[str, Any]:
    """Streams the text to the terminal; returns it with its time in seconds."""
    if options.raw and options.system is not None:
        raise ConfigError("--raw and --system cannot be combined: --system needs the template.")
    text = read_text("-") if options.input == "-" else options.input
    if options.system is not None:
        text = edge_prompt_with_system(read_text(options.system), text)
    elif not options.raw and is_merged(options.model):
        text = edge_prompt(text)
    model = load_adapted(options.model, options.dtype, options.adapter)

    wanted = options.max_new_tokens
    if wanted is None:  # `generate` raises for a prompt that leaves no room
        room = model.config.max_positions - len(encode(model.tokenizer, text, bos=True))
        wanted = max(1, min(DEFAULT_TOKENS, room))

    def show(_: int, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    began = time.time()
    output = generate(
        model,
        text,
        max_new_tokens=wanted,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=options.stop,
        stream=show,
    )
    print()
    return {"input": text, "output": output, "seconds": time.time() - began}
