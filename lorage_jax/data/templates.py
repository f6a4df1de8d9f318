"""The templates of all texts, and their conversion to token ids.

The cloud reads `cloud_prompt(system)`. The specialised edge reads `edge_prompt(user)` and continues
with `edge_target(target)`. The edge of the in-context baseline reads `edge_prompt_with_system`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorage_jax.errors import DataError, WeightsError

# Increment this when a template or `encode` changes: a generator works only with the format it was
# trained on.
TEMPLATE_VERSION = 1


def cloud_prompt(system: str) -> str:
    """The cloud's text, which the meta tokens follow."""
    return f"System: {system.strip()}"


def edge_prompt(user: str) -> str:
    """The specialised edge's text. For an empty user text, it is only the cue to answer."""
    user = user.strip()
    return f"User: {user}\nAssistant:" if user else "Assistant:"


def edge_prompt_with_system(system: str, user: str) -> str:
    """The in-context baseline's text: the system prompt in the edge's own context."""
    return f"{cloud_prompt(system)}\n\n{edge_prompt(user)}"


def edge_target(target: str) -> str:
    """The answer as it follows the edge's prompt, after one space."""
    return f" {target.strip()}"


def few_shot_prompt(description: str, samples: Iterable[tuple[str, str]]) -> str:
    """A system prompt: the task's description, then solved samples as (user, target).

    The samples look like the edge's own turns, so that the in-context baseline reads an ordinary
    few-shot prompt.
    """
    turns = [edge_prompt(user) + edge_target(target) for user, target in samples]
    return "\n\n".join([description.strip(), *turns])


def encode(tokenizer: Any, text: str, bos: bool) -> list[int]:
    """Token ids of `text`, after a bos if `bos` is set and the tokenizer has one.

    Text that spells a special token ("</s>") is read as plain text, so a user cannot end the turn.

    Raises DataError for text that is not valid Unicode (half a surrogate pair, a stray byte), and
    WeightsError without a tokenizer.
    """
    if tokenizer is None:
        raise WeightsError(
            "no usable tokenizer: the folder has none of its files, so only ids go in. "
            "Put tokenizer.json and tokenizer_config.json next to config.json."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"character {error.start} of the text is not valid Unicode.") from None
    # verbose=False: no warning about the maximum length, because the callers cut.
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [tokenizer.bos_token_id, *ids] if bos and tokenizer.bos_token_id is not None else ids


def encode_target(tokenizer: Any, target: str) -> list[int]:
    """Token ids of an answer that follows an `edge_prompt`, then eos if the tokenizer has one."""
    # Inference encodes the prompt alone, so the answer is encoded alone, too. SentencePiece-like
    # tokenizers prepend a space to every text, so " yes" could get two. The right ids are those
    # that, after the prompt's, decode to prompt and answer as written.
    cue = encode(tokenizer, edge_prompt(""), bos=False)
    both = encode(tokenizer, edge_prompt("") + edge_target(target), bos=False)
    bare = encode(tokenizer, target.strip(), bos=False)
    joined, written = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (cue + bare, both)
    )
    ids = bare if joined == written else encode(tokenizer, edge_target(target), bos=False)
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def fit_prompt(tokenizer: Any, system: str, max_tokens: int) -> tuple[list[int], bool]:
    """The cloud's token ids of a system prompt, at most the first `max_tokens`.

    Returns (ids, whether they were cut).
    """
    ids = encode(tokenizer, cloud_prompt(system), bos=True)
    return ids[:max_tokens], len(ids) > max_tokens


def fit_query(
    tokenizer: Any, user: str, target: str, max_tokens: int
) -> tuple[list[int], list[int], bool]:
    """The edge's token ids of prompt and target, together at most `max_tokens`.

    Excess is cut from the start of the user's text, keeping the template around it; if that is not
    enough, from the end of the target (with its eos).

    Returns (prompt ids, target ids, whether any were cut).
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
    """Length of the common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
