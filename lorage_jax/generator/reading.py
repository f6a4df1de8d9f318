"""Texts of system prompts to the token ids of the model that reads them, checked."""

from __future__ import annotations

from collections.abc import Sequence

from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import DataError
from lorage_jax.models.model import Model


def prompt_ids(
    reader: Model, kind: TemplateKind, prompts: Sequence[str], slots: int
) -> list[list[int]]:
    """The token ids of each prompt, as `reader` reads it before `slots` more slots.

    Raises DataError for an empty prompt, or one that leaves no room in the reader's context.
    """
    turns, room = kind.on(reader.tokenizer), reader.config.max_positions - slots
    rows = []
    for prompt in prompts:
        ids = turns.read(prompt) if prompt.strip() else []
        if not ids:
            raise DataError("the system prompt is empty; expected text that describes the task.")
        if len(ids) > room:
            raise DataError(
                f"the system prompt has {len(ids)} tokens; the model that reads it takes at most "
                f"{room} (context {reader.config.max_positions} less {slots}). Shorten the prompt."
            )
        rows.append(ids)
    return rows
