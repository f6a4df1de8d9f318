"""One card's LoRA as a GGUF file, which llama.cpp loads beside the base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorage_jax.files.gguf import library
from lorage_jax.generator.adapter import card_matrices
from lorage_jax.generator.card import GGUF_KEY, Card
from lorage_jax.generator.merge import check_kinds
from lorage_jax.gguf.architectures import get_architecture
from lorage_jax.gguf.tensors import tensor_names
from lorage_jax.llamacpp.file import Entry, check_place, check_type, fitting_type, write_gguf
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model


def export_lora_gguf(
    pool: Pool,
    card: Card,
    edge: Model,
    path: str | Path,
    type: str = "f32",
    overwrite: bool = False,
) -> None:
    """Writes the assembled LoRA of `card` for llama.cpp, with the card itself in its keys.

    llama.cpp applies it to the GGUF file of `edge` in any type. It cannot tell another base of the
    same shape: `lorage.edge` holds the fingerprint of the right one.

    Args:
        path: the file to write; its name without the ending is the adapter's.
        type: how the factors are stored, a key of `llamacpp.file.TYPES`.
        overwrite: replace the file if it exists.

    Raises WeightsError when the card is of another generator or edge, ConfigError for a model that
    llama.cpp does not compute, and OutputError.
    """
    check_kinds(edge, pool, card)
    check_type(type)
    check_place(path, overwrite, edge.source)
    card.check(edge, pool)
    row = get_architecture(edge.config)
    names = tensor_names(edge.config, row)
    rank, matrices = card_matrices(pool, card, edge.config)
    keys = library().Keys.Adapter

    def add_keys(writer: Any) -> None:
        name = Path(path).stem
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string(keys.TYPE, "lora")
        writer.add_float32(keys.LORA_ALPHA, pool.scale * rank)
        writer.add_string(keys.LORA_TASK_NAME, name)
        writer.add_string(GGUF_KEY, json.dumps(card.to_dict()))
        writer.add_string("lorage.edge", edge.fingerprint)
        writer.add_string("lorage.generator", pool.generator)

    def entries() -> Iterator[Entry]:
        for module, (a, b) in matrices.items():
            # The scale is alpha over the number of rows of A, which is larger in fused modules.
            b = b * (a.shape[0] / rank)
            for part, values in (("lora_a", a), ("lora_b", b)):
                stored = fitting_type(type, values.shape)
                name = f"{names(f'{module}.weight')}.{part}"
                yield Entry(name, values.shape, stored, lambda values=values: values)

    write_gguf(path, row.name, add_keys, list(entries()), overwrite)
