"""The one place for templates, and for how text becomes token ids.

The cloud reads `cloud_prompt(system)`; the specialised edge reads `edge_prompt(user)` and
continues with `edge_target(target)`. The baseline edge reads `edge_prompt_with_system`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorage_jax.errors import DataError

# Raise it with every change of a template or of `encode`: generators are bound to what they read.
TEMPLATE_VERSION = 1


def cloud_prompt(system: str) -> str:
    """The text the cloud reads; the meta tokens follow it."""
    return f"System: {system.strip()}"


def edge_prompt(user: str) -> str:
    """The text the specialised edge reads. An empty user text leaves only the cue to answer."""
    user = user.strip()
    return f"User: {user}\nAssistant:" if user else "Assistant:"


def edge_prompt_with_system(system: str, user: str) -> str:
    """The baseline: the system prompt in the edge's own context."""
    return f"{cloud_prompt(system)}\n\n{edge_prompt(user)}"


def edge_target(target: str) -> str:
    """The answer as it follows the prompt: behind one space."""
    return f" {target.strip()}"


def few_shot_prompt(description: str, samples: Iterable[tuple[str, str]]) -> str:
    """A system prompt: the task's description, then solved samples as (user, target).

    The samples look like the edge's own turns, so the baseline that carries the prompt in its
    context is an ordinary few-shot prompt.
    """
    turns = [edge_prompt(user) + edge_target(target) for user, target in samples]
    return "\n\n".join([description.strip(), *turns])


def encode(tokenizer: Any, text: str, bos: bool) -> list[int]:
    """Token ids of `text`, behind one bos if asked for and if the tokenizer has one.

    Text that spells a special token ("</s>") is read as text: a user cannot end the turn.
    DataError for text that no UTF-8 file can hold (half a surrogate pair, a stray byte).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"character {error.start} of the text is not valid Unicode.") from None
    # verbose: no warning about a maximum length; the callers cut.
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [tokenizer.bos_token_id, *ids] if bos and tokenizer.bos_token_id is not None else ids


def encode_target(tokenizer: Any, target: str) -> list[int]:
    """Token ids of an answer behind any `edge_prompt`, then eos if the tokenizer has one."""
    # Inference encodes the prompt alone, so the answer is encoded alone as well. But
    # SentencePiece-like tokenizers put a space before whatever they are given, so " yes" may get
    # two: what counts is that prompt and answer read together as they are written.
    cue = encode(tokenizer, edge_prompt(""), bos=False)
    both = encode(tokenizer, edge_prompt("") + edge_target(target), bos=False)
    bare = encode(tokenizer, target.strip(), bos=False)
    joined, written = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (cue + bare, both)
    )
    ids = bare if joined == written else encode(tokenizer, edge_target(target), bos=False)
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def fit_prompt(tokenizer: Any, system: str, max_tokens: int) -> tuple[list[int], bool]:
    """Cloud token ids of a system prompt, at most `max_tokens` (the start is kept); cut?"""
    ids = encode(tokenizer, cloud_prompt(system), bos=True)
    return ids[:max_tokens], len(ids) > max_tokens


def fit_query(
    tokenizer: Any, user: str, target: str, max_tokens: int
) -> tuple[list[int], list[int], bool]:
    """Edge token ids (prompt, target, cut?) with at most `max_tokens` together.

    What is too long loses the start of the user's text, but not the template around it; only
    if that is not enough, the end of the target (with its eos).
    """
    prompt = encode(tokenizer, edge_prompt(user), bos=True)
    answer = encode_target(tokenizer, target)
    excess = len(prompt) + len(answer) - max_tokens
    if excess <= 0:
        return prompt, answer, False
    frame = encode(tokenizer, edge_prompt("x"), bos=True)
    head = _common(prompt, frame)
    tail = min(_common(prompt[::-1], frame[::-1]), len(prompt) - head, len(frame) - head)
    drop = min(excess, len(prompt) - head - tail)
    prompt = prompt[:head] + prompt[head + drop :]
    return prompt, answer[: max_tokens - len(prompt)], True


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common start."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
