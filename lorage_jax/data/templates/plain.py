"""The plain template: System, User and Assistant, for models without a chat template.

The cloud reads `cloud_prompt(system)`. The specialised edge reads `edge_prompt(user)` and continues
with `edge_target(target)`. The edge of the in-context baseline reads `edge_prompt_with_system`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from lorage_jax.data.templates.template import Message, Template, check_messages
from lorage_jax.data.templates.tokens import TurnEncoder, encode
from lorage_jax.errors import DataError


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


def chat_prompt(texts: Sequence[str], system: str | None = None) -> str:
    """The text of a chat up to the cue for its next answer, without ends of turns.

    Args:
        texts: those of user and assistant in alternation, the last one the user's.
        system: a system prompt to put in front.
    """
    *earlier, user = texts
    answered = zip(earlier[::2], earlier[1::2], strict=True)
    before = [] if system is None else [cloud_prompt(system)]
    solved = [edge_prompt(asked) + edge_target(answer) for asked, answer in answered]
    return "\n\n".join([*before, *solved, edge_prompt(user)])


def edge_target(target: str) -> str:
    """The answer as it follows the edge's prompt, after one space."""
    return f" {target.strip()}"


def few_shot_prompt(description: str, samples: Iterable[tuple[str, str]]) -> str:
    """A system prompt: the task's description, then solved samples as (user, target).

    The samples look like the plain template's turns, whatever the models' own: the prompt is one
    text to them.
    """
    turns = [edge_prompt(user) + edge_target(target) for user, target in samples]
    return "\n\n".join([description.strip(), *turns])


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


class PlainTemplate(Template):
    """`System: ...`, a blank line, `User: ...`, `Assistant: ...` and eos, another blank line."""

    name: ClassVar[str] = "plain"

    @property
    def ends(self) -> tuple[int, ...]:
        return () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)

    @property
    def lead(self) -> str:
        return " "

    @functools.cached_property
    def _encoder(self) -> TurnEncoder:
        return TurnEncoder(self.tokenizer, self.tokenizer.eos_token or "")

    def text(self, messages: Sequence[Message], cue: bool = True) -> str:
        return self._text(messages, cue, lambda content: content)

    def _text(self, messages: Sequence[Message], cue: bool, hide: Any) -> str:
        parts = []
        for message in check_messages(messages):
            content = hide(message["content"].strip())
            if message["role"] == "system":
                parts.append(f"System: {content}\n\n")
            elif message["role"] == "user":
                parts.append(f"User: {content}\n" if content else "")
            elif message["role"] == "assistant":
                parts.append(f"Assistant: {content}{self.tokenizer.eos_token or ''}\n\n")
            else:
                raise DataError(
                    f"a message has the role {message['role']!r}; the plain template knows "
                    "system, user and assistant."
                )
        return "".join([*parts, "Assistant:"]) if cue else "".join(parts).rstrip("\n")

    def ids(self, messages: Sequence[Message]) -> list[int]:
        if all(message.get("role") != "assistant" for message in messages):
            return [*self.bos, *encode(self.tokenizer, self.text(messages), bos=False)]
        return [*self.bos, *self._encoder(self._text(messages, True, self._encoder.hide))]

    def tokens(self, text: str) -> list[int]:
        return [*self.bos, *encode(self.tokenizer, text, bos=False)]

    def read(self, system: str) -> list[int]:
        return [*self.bos, *encode(self.tokenizer, cloud_prompt(system), bos=False)]

    def answer(self, target: str, messages: Sequence[Message] = ()) -> list[int]:
        return encode_target(self.tokenizer, target)

    def jinja(self, space: bool = True) -> str:
        first = self.written_bos("User: a", space) if self.bos else ""
        begin = f"{{{{- '{first}' -}}}}\n" if first else ""
        return begin + _JINJA.replace("$EOS", " + eos_token" if self.ends else "")


# The same as `text`, in Jinja.
_JINJA = """{%- for message in messages -%}
{%- set content = message['content'] | trim -%}
{%- set more = add_generation_prompt or not loop.last -%}
{%- if message['role'] == 'system' -%}
{{- 'System: ' + content + ('\\n\\n' if more else '') -}}
{%- elif message['role'] == 'user' -%}
{{- 'User: ' + content + ('\\n' if more else '') if content else '' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant: ' + content$EOS + ('\\n\\n' if more else '') -}}
{%- else -%}
{{- raise_exception('expected the roles system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:' -}}
{%- endif -%}
"""
