"""`lorage generate`: text from a model folder, streamed to the terminal."""

from __future__ import annotations

import logging
import sys
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from lorage_jax.commands.adapted import load_adapted
from lorage_jax.data.records import read_text, read_whole_text
from lorage_jax.data.templates import ChatTemplate, check_tokenizer, question
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.hf.export import is_merged
from lorage_jax.infer.chat import answer_tokens, chat
from lorage_jax.infer.generate import generate, prompt_rows
from lorage_jax.models.model import Model

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from lorage_jax.commands.options import Generate


def run(options: Generate) -> dict[str, Any]:
    """Streams the text to the terminal; returns it with its time in seconds."""
    if options.raw and options.system is not None:
        raise ConfigError("--raw and --system cannot be combined: --system needs the template.")
    _warn_of_sampling(options)
    text = _input(options)
    system = None if options.system is None else read_text(options.system)
    if system is None and not text.strip():
        raise DataError("the text of --input is empty; expected a question, or a text to continue.")
    model = load_adapted(options.model, options.dtype, options.adapter)
    check_tokenizer(model.tokenizer, options.model)
    turns = not options.raw and (system is not None or _answers(options, model))
    messages = question(text, system)
    ids = model.template.ids(messages) if turns else prompt_rows(model, [text])[0]

    def show(_: int, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    settings: dict[str, Any] = {
        "max_new_tokens": answer_tokens(model, [ids], options.max_new_tokens),
        "temperature": options.temperature,
        **_draws(options),
        "stop": tuple(chain.from_iterable(options.stop)),
        "stream": show,
    }
    began = time.monotonic()
    output = chat(model, messages, **settings) if turns else generate(model, ids, **settings)
    print()
    shown = model.template.text(messages) if turns else text
    return {"input": shown, "output": output, "seconds": time.monotonic() - began}


def _input(options: Generate) -> str:
    """The text of `--input`. A line from a pipe loses its end, but a --raw text stays as it is."""
    if options.input != "-":
        return options.input
    text = read_whole_text("-", "the text of --input")
    return text if options.raw else text.replace("\r\n", "\n").removesuffix("\n")


def _draws(options: Generate) -> dict[str, Any]:
    """The given options that only sampling obeys."""
    values = {"top_k": options.top_k, "top_p": options.top_p, "seed": options.seed}
    return {name: value for name, value in values.items() if value is not None}


def _warn_of_sampling(options: Generate) -> None:
    """Warns of options of sampling where the likeliest token is taken."""
    if options.temperature == 0 and (given := _draws(options)):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        _log.warning(
            "%s: only sampling obeys this, and --temperature is 0 (the default), which takes the "
            "likeliest token.",
            flags,
        )


def _answers(options: Generate, model: Model) -> bool:
    """True for a model that was trained on turns: a specialised one, or one with a chat template.

    Any other continues the text.
    """
    ours = is_merged(options.model) or model.answers
    return ours or isinstance(model.template, ChatTemplate)
