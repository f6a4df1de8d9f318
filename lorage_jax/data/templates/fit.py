"""Prompts and queries cut to a number of tokens, with the template around them kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lorage_jax.data.templates.template import (
    Conversation,
    Template,
    alternating,
    common_length,
)


def fit_prompt(template: Template, system: str, max_tokens: int) -> tuple[list[int], bool]:
    """The cloud's token ids of a system prompt, at most the first `max_tokens`.

    Returns (ids, whether they were cut).
    """
    ids = template.read(system)
    return ids[:max_tokens], len(ids) > max_tokens


def fit_context(template: Template, system: str, max_tokens: int) -> tuple[str, bool]:
    """The start of a system prompt that adds at most `max_tokens` to a question of the edge.

    Returns (text, whether it was cut).
    """
    bare, fitting = len(template.prompt("x")), system
    while fitting:
        added = len(template.prompt("x", fitting)) - bare
        if added <= max_tokens:
            break
        fitting = fitting[: min(len(fitting) * max_tokens // added, len(fitting) - 1)]
    return fitting, fitting != system


def fit_query(
    template: Template, user: str, target: str, max_tokens: int, system: str | None = None
) -> tuple[list[int], list[int], bool]:
    """The edge's token ids of prompt and target, together at most `max_tokens`.

    With `system`, the prompt begins with that system prompt.

    Excess is cut from the start of the user's text, keeping the template around it; if that is not
    enough, from the end of the target (with the end of its turn).

    Returns (prompt ids, target ids, whether any were cut).
    """
    prompt, answer = template.prompt(user, system), template.answer(target)
    excess = len(prompt) + len(answer) - max_tokens
    if excess <= 0:
        return prompt, answer, False
    frame = template.prompt("x", system)
    head = common_length(prompt, frame)
    tail = min(common_length(prompt[::-1], frame[::-1]), len(prompt) - head, len(frame) - head)
    drop = min(excess, len(prompt) - head - tail)
    prompt = prompt[:head] + prompt[head + drop :]
    return prompt, answer[: max_tokens - len(prompt)], True


def fit_chat(
    template: Template,
    texts: Sequence[str],
    max_tokens: int,
    turns: Literal["last", "all"],
    system: str | None = None,
) -> tuple[Conversation, bool]:
    """The edge's token ids of a chat, at most `max_tokens`.

    Excess is cut from its start: first whole exchanges, then as in `fit_query`.

    Args:
        template: the edge's turns.
        texts: those of user and assistant in alternation, the last one an answer.
        max_tokens: the most tokens.
        turns: the answers with a loss, as in `Template.conversation`.
        system: a system prompt that the edge reads in front.

    Returns (ids and loss mask, whether any ids were cut).
    """
    kept = texts
    while len(kept) > 2:
        # The last answer alone has a loss here, which takes one rendering and gives the same ids.
        found = template.conversation(alternating(kept, system), "last")
        if len(found.tokens) <= max_tokens:
            if turns == "all":
                found = template.conversation(alternating(kept, system))
            return found, len(kept) < len(texts)
        kept = kept[2:]
    user, target = kept
    asked, answer, cut = fit_query(template, user, target, max_tokens, system)
    mask = [False] * len(asked) + [True] * len(answer)
    return Conversation(asked + answer, mask), cut or len(kept) < len(texts)
