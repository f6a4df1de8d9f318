"""Loads the tokenizer of a Hugging Face folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from lorage_jax.errors import WeightsError

# Files of which one is enough for a tokenizer.
FILES = (
    *("tokenizer.json", "tekken.json", "tokenizer.model", "spiece.model"),
    *("vocab.json", "vocab.txt"),
)
SENTENCEPIECE = "tokenizer.model"  # or, in Llama 3, of tiktoken


class InventedTokenizerError(WeightsError):
    """A folder without a vocabulary, for which transformers makes up an empty tokenizer."""


def load_tokenizer(folder: Path) -> Any:
    """Loads the folder's tokenizer without running code from the folder.

    Raises WeightsError if there is none that transformers can load.
    """
    from transformers import AutoTokenizer

    _check_sentencepiece(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many types; all mean the same to a user
        reason = " ".join(str(error).split())[:200].rstrip(". ") or repr(error)
        raise WeightsError(
            f"{folder}: no usable tokenizer ({reason}). Expected tokenizer.json and "
            "tokenizer_config.json next to config.json."
        ) from None
    if _is_empty(tokenizer):
        raise InventedTokenizerError(
            f"{folder} has no tokenizer files that transformers reads, and for such a model it "
            "makes up a tokenizer without a vocabulary. Expected tokenizer.json and "
            "tokenizer_config.json next to config.json."
        )
    return tokenizer


def _check_sentencepiece(folder: Path) -> None:
    """Raises WeightsError if the folder has a file of SentencePiece alone, and not its package.

    transformers would take it for a file of tiktoken, and ask for that package.
    """
    if [name for name in FILES if (folder / name).is_file()] != [SENTENCEPIECE]:
        return
    try:
        with (folder / SENTENCEPIECE).open("rb") as file:
            serialised = file.read(1) == b"\n"  # its first field; a file of tiktoken is text
    except OSError:
        return  # transformers says why
    if serialised and importlib.util.find_spec("sentencepiece") is None:
        raise WeightsError(
            f"{folder}: reading {SENTENCEPIECE} without a tokenizer.json needs the package "
            "sentencepiece: pip install sentencepiece. Or put the model's tokenizer.json next to "
            "it."
        )


def _is_empty(tokenizer: Any) -> bool:
    """True if a tokenizer has special and added tokens alone, and perhaps one for a space."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return set(tokenizer.get_vocab()) <= {*added, *tokenizer.all_special_tokens, "\u2581"}


def tokenizer_or_none(folder: Path) -> Any:
    """`load_tokenizer`, but None for a folder without tokenizer files, if nothing is made up."""
    try:
        return load_tokenizer(folder)
    except InventedTokenizerError:
        raise
    except WeightsError:
        if has_tokenizer_files(folder):
            raise
        return None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the tokenizer's files, for a folder without a config.json, too."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text("utf-8"))
    for name in ("name_or_path", "is_local", "local_files_only"):  # of this machine
        values.pop(name, None)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def stored_chat_template(folder: Path) -> str | None:
    """The chat template among a folder's tokenizer files, of named ones the default.

    None if there is none.
    """
    try:
        return (folder / "chat_template.jinja").read_text("utf-8")
    except (OSError, ValueError):
        pass
    try:
        values = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        found = values.get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def has_tokenizer_files(folder: Path) -> bool:
    """True if a folder has a file that is enough for a tokenizer."""
    return any((folder / name).exists() for name in FILES)
