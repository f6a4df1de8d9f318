"""Texts of system prompts to the token ids of the model that reads them, checked."""

from __future__ import annotations

from collections.abc import Sequence

from lorage_jax.data.templates import Template
from lorage_jax.errors import DataError
from lorage_jax.models.model import Model


def prompt_ids(
    reader: Model, turns: Template, prompts: Sequence[str], slots: int
) -> list[list[int]]:
    """The token ids of each prompt in `turns`, as `reader` reads it before `slots` more slots.

    Raises DataError for an empty prompt, one that leaves no room in the reader's context, and a
    tokenizer whose ids are beyond the reader's vocabulary.
    """
    context, size = reader.config.max_positions, reader.config.vocab_size
    rows = []
    for prompt in prompts:
        ids = turns.read(prompt) if prompt.strip() else []
        if not ids:
            raise DataError("the system prompt is empty; expected text that describes the task.")
        if len(ids) > context - slots:
            raise DataError(
                f"the system prompt has {len(ids)} tokens; the model that reads it takes at most "
                f"{context - slots} (its context of {context} less {slots}). Shorten the prompt."
            )
        if max(ids) >= size:  # the device would clamp it without a word
            raise DataError(
                f"the tokenizer of {reader.source or 'the model that reads the prompt'} gives id "
                f"{max(ids)}, but the model's vocabulary is 0 to {size - 1}. The tokenizer files "
                "in its folder belong to another model."
            )
        rows.append(ids)
    return rows
