"""Writes a model as one GGUF file, from memory or from its folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.data.templates import Template, check_tokenizer
from lorage_jax.errors import ConfigError
from lorage_jax.fields import home_path, require_kind
from lorage_jax.files.gguf import library
from lorage_jax.files.manifest import MERGED, manifest_of
from lorage_jax.gguf.architectures import Architecture, add_model_keys, get_architecture
from lorage_jax.gguf.tensors import ROPE, rope_divisors, tensor_names, to_llamacpp
from lorage_jax.gguf.tokenizer import add_tokenizer_keys, read_vocabulary
from lorage_jax.hf import tables
from lorage_jax.hf.load import folder_template
from lorage_jax.hf.source import open_model
from lorage_jax.llamacpp.file import (
    TYPES,
    Entry,
    check_place,
    check_type,
    fitting_type,
    write_gguf,
)
from lorage_jax.models.model import Model

ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
TABLES = ("token_embd.weight", "output.weight")  # they keep 8 bits where others have fewer


@dataclass(frozen=True)
class Source:
    """The parts of a file.

    Attributes:
        name: the model's name, for people.
        read: returns the tensor with a name of Hugging Face.
        template: the turns that it reads and writes.
        jinja: the text of its chat template.
    """

    name: str
    config: ModelConfig
    read: Callable[[str], np.ndarray]
    tokenizer: Any
    template: Template
    jinja: str


def export_gguf(
    model: Model | str | Path,
    path: str | Path,
    type: str = "f16",
    pre: str | None = None,
    overwrite: bool = False,
    template: Template | None = None,
) -> None:
    """Writes a model with its tokenizer and the chat template of its turns as a GGUF file.

    Args:
        model: a loaded model, or a Hugging Face folder, of which one tensor at a time is read.
        path: the file to write.
        type: how matrices are stored, a key of TYPES. Vectors are always f32; rows that the type's
            blocks of 32 values do not fit are f16; below 8 bits, the embeddings and the head are
            q8_0.
        pre: llama.cpp's name of the way in which the tokenizer splits texts, if it is not known.
        overwrite: replace the file if it exists and is a GGUF file, but not the model's own.
        template: the turns; by default those that it was specialised in, else its own chat
            template, else plain ones. A base for adapters needs those of their cards
            (`Card.turns`).

    Raises ConfigError for a model that llama.cpp does not compute, WeightsError for a tokenizer
    that it does not have, and OutputError.
    """
    check_type(type)
    check_place(path, overwrite, place_of(model))
    gguf = library()
    source = read_source(model)
    if template is not None:
        source = replace(source, template=template, jinja=template.jinja(space=False))
    config = source.config
    row = get_architecture(config)
    vocabulary = read_vocabulary(source.tokenizer, config.vocab_size, pre)

    def add_keys(writer: Any) -> None:
        writer.add_type("model")
        writer.add_name(source.name)
        writer.add_file_type(gguf.LlamaFileType[TYPES[type]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_model_keys(writer, config, row)
        add_tokenizer_keys(writer, vocabulary)
        _add_turns(writer, source)

    write_gguf(path, row.name, add_keys, list(entries(source, row, type)), overwrite)


def read_source(model: Any) -> Source:
    """The parts of the file of a loaded model, or of a Hugging Face folder."""
    return _of_model(model) if isinstance(model, Model) else _of_folder(home_path(model))


def place_of(model: Any) -> str | Path | None:
    """The folder or file that an export of `model` reads.

    Of a loaded model that is its GGUF file alone: a folder that it came from has been read. Raises
    ConfigError for a model of another kind.
    """
    known = "a Model, as lg.load_model(folder) returns it, or a Hugging Face folder"
    require_kind(model, Model | str | PathLike, "model", known)
    if not isinstance(model, Model):
        return model
    return model.source if model.source is not None and model.source.is_file() else None


def check_exportable(model: Model) -> None:
    """Raises ConfigError or WeightsError where `export_gguf` would refuse the model's kind."""
    library()
    get_architecture(model.config)
    check_tokenizer(model.tokenizer, model.source or "this model")
    read_vocabulary(model.tokenizer, model.config.vocab_size)


def _of_model(model: Model) -> Source:
    check_tokenizer(model.tokenizer, model.source or "this model")
    get = functools.partial(tables.leaf_array, model.params)
    makers = dict(tables.tensors(model.config, get))
    trained = model.card is not None or model.answers
    jinja = _jinja(model.template, trained)
    name = "model" if model.source is None else model.source.absolute().name
    return Source(
        name, model.config, lambda tensor: makers[tensor](), model.tokenizer, model.template, jinja
    )


def _of_folder(folder: Path) -> Source:
    config, checkpoint, tokenizer, _ = open_model(folder, with_tokenizer=True)
    check_tokenizer(tokenizer, folder)
    template = folder_template(folder, tokenizer)
    assert template is not None  # there is a tokenizer
    trained = manifest_of(folder).get("format") == MERGED
    jinja = _jinja(template, trained)
    return Source(folder.absolute().name, config, checkpoint.read, tokenizer, template, jinja)


def _jinja(template: Template, trained: bool) -> str:
    """The chat template of the trained turns, else the tokenizer's own, else of plain turns."""
    own = template.tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    return template.jinja(space=False) if trained or not own else own


def _add_turns(writer: Any, source: Source) -> None:
    """Adds the ids of begin and end of a text, and the chat template."""
    tokenizer, template = source.tokenizer, source.template
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(bool(template.bos))
    writer.add_add_eos_token(False)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    add_ends(writer, [*own, *source.config.eos_ids, *template.ends], {})
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(source.jinja)


def add_ends(writer: Any, ends: Iterable[int], held: Mapping[str, Any]) -> None:
    """Adds ids that end a text under keys that are free; `held` are keys that are in the file."""
    taken = [held[key] for key in ENDS if key in held]
    free = [key for key in ENDS if key not in held]
    new = [end for end in dict.fromkeys(ends) if end not in taken]
    if len(new) > len(free):
        raise ConfigError(
            f"{len(taken) + len(new)} tokens end a text of this model; llama.cpp takes three."
        )
    for key, end in zip(free, new, strict=False):
        writer.add_uint32(key, end)


def entries(source: Source, row: Architecture, type: str) -> Iterator[Entry]:
    """All tensors in the order of the layers."""
    names = tensor_names(source.config, row)
    for name, shape in tables.tensor_shapes(source.config).items():
        own = names(name)
        kind = fitting_type(type, shape)
        if own in TABLES and kind.startswith(("q4", "q5")):
            kind = fitting_type("q8_0", shape)

        def make(name: str = name) -> np.ndarray:
            return to_llamacpp(source.config, row, name, source.read(name))

        yield Entry(own, shape, kind, make)
    scaling, size = source.config.rope_scaling, source.config.rotary_dim
    if scaling is not None and scaling.kind == "llama3":
        divisors = rope_divisors(size, source.config.rope_theta, scaling)
        yield Entry(ROPE, (size // 2,), "f32", lambda: divisors)
