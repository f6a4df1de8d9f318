"""Prompts of `generate` in every form that it takes, to the token ids of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

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
        return "input_ids" not in prompts or _is_ids(prompts["input_ids"])
    if isinstance(prompts, TEXT) or not isinstance(prompts, Collection):
        return True  # one of another kind is refused as such
    return is_messages(prompts) or _is_ids(prompts)


def several(prompts: Any) -> list[Any]:
    """Each prompt; what a tokenizer returns for several texts becomes their ids, unpadded."""
    if not isinstance(prompts, Mapping):
        return list(prompts)
    rows = prompts["input_ids"]
    masks = prompts.get("attention_mask")
    if masks is None:
        masks = [[1] * len(row) for row in rows]
    return [
        [one for one, real in zip(row, mask, strict=True) if real]
        for row, mask in zip(rows, masks, strict=True)
    ]


def _is_ids(value: Any) -> bool:
    if isinstance(value, TEXT | Mapping) or not isinstance(value, Collection):
        return False
    return len(value) > 0 and all(isinstance(one, Integral) for one in value)


def _row(model: Model, prompt: Any, index: int) -> list[int]:
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        prompt = prompt["input_ids"]
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
