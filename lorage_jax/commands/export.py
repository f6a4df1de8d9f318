"""`lorage export`: a model folder as a GGUF file for llama.cpp."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorage_jax import distributed
from lorage_jax.data.templates import Template
from lorage_jax.errors import ConfigError
from lorage_jax.files.manifest import MERGED, manifest_of
from lorage_jax.generator.card import load_card
from lorage_jax.hf.source import open_model
from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.llamacpp.onto import export_onto_gguf
from lorage_jax.models.model import Model

if TYPE_CHECKING:
    from lorage_jax.commands.conversion_options import Export

_log = logging.getLogger(__name__)
DEFAULT = "f16"
FEW_BITS = ("q4", "q5")


def run(options: Export) -> dict[str, Any] | None:
    """Writes the file and returns its size in bytes, with the time in seconds.

    With several processes, only the main one writes.
    """
    distributed.initialise(options.coordinator, options.num_processes, options.process_id)
    return distributed.on_main(lambda: _exported(options))


def _exported(options: Export) -> dict[str, Any]:
    began = time.monotonic()
    turns = None if options.turns is None else _turns(options.turns, options.model)
    kind = options.type or DEFAULT
    if options.base is None:
        export_gguf(options.model, options.gguf, kind, options.pre, options.overwrite, turns)
        if kind.startswith(FEW_BITS) and manifest_of(options.model).get("format") == MERGED:
            _log.warning(
                "%s may lose part of the update of these merged weights, which is not measured "
                "without their base; lorage specialize --save gguf --gguf-type %s measures it.",
                *(kind, kind),
            )
    elif turns is not None or options.pre is not None:
        raise ConfigError("--base cannot be combined with --turns or --pre: it brings a tokenizer.")
    else:
        kind = options.type or "as in the base"
        export_onto_gguf(options.model, options.base, options.gguf, options.type, options.overwrite)
    size, seconds = options.gguf.stat().st_size, time.monotonic() - began
    print(f"Written: {options.gguf} ({kind}, {size / 1e6:.1f} MB) in {seconds:.1f} s")
    return {
        "gguf": str(options.gguf),
        "type": kind,
        "bytes": size,
        "seconds": seconds,
    }


def _turns(card: Path, folder: Path) -> Template:
    """The turns in which the folder's model answers under a card of it."""
    opened, found = open_model(folder, with_tokenizer=True), load_card(card)
    edge = Model(opened.config, {}, opened.tokenizer, source=folder)
    found.check_edge(edge)
    return found.turns(edge)
