"""Prompts and queries cut to a number of tokens, with the template around them kept."""

from __future__ import annotations

from lorage_jax.data.templates.template import Template


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
    head = _common(prompt, frame)
    tail = min(_common(prompt[::-1], frame[::-1]), len(prompt) - head, len(frame) - head)
    drop = min(excess, len(prompt) - head - tail)
    prompt = prompt[:head] + prompt[head + drop :]
    return prompt, answer[: max_tokens - len(prompt)], True


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
