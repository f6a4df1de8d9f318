"""Prompts of `generate` in every form that it takes, to the token ids of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

import jax
import numpy as np

from lorage_jax.data.templates import Message, check_tokenizer, encode_marked, is_messages
from lorage_jax.errors import DataError
from lorage_jax.models.model import Model

# A text, token ids (also as `tokenizer(text)` returns them), or the messages of a chat.
Prompt = str | Sequence[int] | Mapping[str, Any] | Sequence[Message]

TEXT = str | bytes | bytearray  # of these, bytes are no prompt: their numbers are no token ids


def prompt_rows(model: Model, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The token ids of each prompt. Raises DataError for an empty prompt or one of another kind."""
    return [_row(model, prompt, i) for i, prompt in enumerate(prompts)]


def is_one(prompts: Any) -> bool:
    """True for a single prompt: a text, a list of ids, what a tokenizer returns, or messages."""
    if isinstance(prompts, Mapping):
        return "input_ids" not in prompts or _is_ids(_on_host(prompts["input_ids"]))
    prompts = _on_host(prompts)
    if isinstance(prompts, TEXT) or not isinstance(prompts, Collection):
        return True  # one of another kind is refused as such
    return is_messages(prompts) or _is_ids(prompts)


def several(prompts: Any) -> list[Any]:
    """Each prompt; what a tokenizer returns for several texts becomes their ids, unpadded.

    Raises DataError if its masks are not as many, or not as long, as its rows.
    """
    if not isinstance(prompts, Mapping):
        return list(_on_host(prompts))
    rows, masks = _on_host(prompts["input_ids"]), _on_host(prompts.get("attention_mask"))
    if masks is not None and len(masks) != len(rows):
        raise DataError(
            f"input_ids has {len(rows)} rows and attention_mask {len(masks)}; expected one mask "
            "for each row."
        )
    return [_unpadded(row, None if masks is None else masks[i], i) for i, row in enumerate(rows)]


def _unpadded(ids: Any, mask: Any, index: int) -> Any:
    """The ids of one prompt at which its mask is 1; all of them without a mask."""
    ids, mask = _on_host(ids), _on_host(mask)
    if mask is None or not _is_ids(ids):
        return ids
    if np.shape(mask) != (len(ids),):
        raise DataError(
            f"prompt {index} has {len(ids)} token ids and an attention_mask of shape "
            f"{np.shape(mask)}; expected 1 or 0 for each id."
        )
    return [one for one, real in zip(ids, mask, strict=True) if real]


def _on_host(value: Any) -> Any:
    """An array of JAX with rows or numbers in it as one of NumPy; anything else as it is."""
    return np.asarray(value) if isinstance(value, jax.Array) and value.ndim else value


def _is_ids(value: Any) -> bool:
    if isinstance(value, TEXT | Mapping) or not isinstance(value, Collection):
        return False
    return len(value) > 0 and all(isinstance(one, Integral) for one in value)


def _row(model: Model, prompt: Any, index: int) -> list[int]:
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        prompt = _unpadded(prompt["input_ids"], prompt.get("attention_mask"), index)
    prompt = _on_host(prompt)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"prompt {index} is empty; expected text to continue.")
        check_tokenizer(model.tokenizer, model.source or "this model")
        return encode_marked(model.tokenizer, prompt)
    if is_messages(prompt):
        check_tokenizer(model.tokenizer, model.source or "this model")
        return model.template.ids(prompt)
    if _is_ids(prompt):
        return [int(one) for one in prompt]
    raise DataError(
        f"prompt {index} is {str(prompt)[:60]!r}; expected text, a list of token ids, or messages "
        "with role and content."
    )
