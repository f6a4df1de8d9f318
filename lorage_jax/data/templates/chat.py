"""The chat template of a model's own tokenizer, without a default system message.

Everything is found out from renderings of the tokenizer's `apply_chat_template`, so any template
of transformers works: whether it knows a system role, what it says when nobody gave it a system
prompt, and what ends the assistant's turn.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from jinja2 import TemplateError

from lorage_jax.data.templates.template import (
    Message,
    Template,
    TemplateKind,
    check_messages,
    question,
)
from lorage_jax.data.templates.tokens import TurnEncoder
from lorage_jax.errors import DataError

_log = logging.getLogger(__name__)

# Contents that stand for any other: words without white space, which no template changes.
SYSTEM, USER, ANSWER = "lorage-system-text", "lorage-user-text", "lorage-answer-text"


def has_chat_template(tokenizer: Any) -> bool:
    """True if a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def is_changed(source: str | None, tokenizer: Any) -> bool:
    """True if a tokenizer's chat template is not, or no longer, the text that was recorded."""
    if source is None or tokenizer is None:
        return False
    try:
        return not has_chat_template(tokenizer) or tokenizer.get_chat_template() != source
    except ValueError:  # named templates, none of which is the default
        return True


def notice_change(source: str | None, tokenizer: Any, where: Any) -> None:
    """Logs a warning, once for each place, if a chat template `is_changed` since training."""
    if is_changed(source, tokenizer):
        _warn_of_change(str(where))


@functools.cache
def _warn_of_change(where: str) -> None:
    _log.warning(
        "The chat template of %s was changed after training; the generator and its cards keep "
        "using the template of their training.",
        where,
    )


def chosen_kind(name: str, cloud: Any, edge: Any) -> TemplateKind:
    """The template of a run: `plain`, `chat`, or with `auto` chat where both tokenizers have one.

    Raises DataError for `chat` where a tokenizer has no chat template.
    """
    lacking = [
        role
        for role, tokenizer in (("cloud", cloud), ("edge", edge))
        if not has_chat_template(tokenizer)
    ]
    if name == "chat" and lacking:
        raise DataError(
            f"template is chat, but the tokenizer of the {' and the '.join(lacking)} has no chat "
            "template (chat_template.jinja). Use plain or auto."
        )
    return TemplateKind("chat" if name != "plain" and not lacking else "plain")


class ChatTemplate(Template):
    """A model's own turns.

    The system prompt joins the user's turn where the template knows no system role. A system
    message that the template adds by itself is left out, as generators are trained without it;
    `untrained` keeps it, as transformers does. `source` is the template's text, by default the
    tokenizer's own. Raises DataError if there is none, or one that cannot render a question.
    """

    name: ClassVar[str] = "chat"

    def __init__(
        self,
        tokenizer: Any,
        version: int = 2,
        source: str | None = None,
        untrained: bool = False,
    ):
        if source is not None and source != getattr(tokenizer, "chat_template", None):
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = source
        super().__init__(tokenizer, version)
        self.untrained = untrained
        if not has_chat_template(tokenizer):
            raise DataError(
                "this tokenizer has no chat template (chat_template.jinja); use the plain template."
            )
        named = tokenizer.chat_template
        if isinstance(named, dict) and "default" not in named:
            raise DataError(
                f"this tokenizer has chat templates for {', '.join(named)}, and no default one."
            )
        if USER not in self._render(question(USER), True):
            raise DataError("the chat template leaves out the user's text.")

    @functools.cached_property
    def source(self) -> str:
        """The template's own text."""
        return self.tokenizer.get_chat_template()

    @property
    def ends(self) -> tuple[int, ...]:
        control = self._encoder.control(self._close)
        eos = self.tokenizer.eos_token_id
        first = [] if control is None else [self._encoder.id(control[0])]
        return tuple(dict.fromkeys([*first, *([] if eos is None else [eos])]))

    @functools.cached_property
    def lead(self) -> str:
        chat = [*question(USER), {"role": "assistant", "content": ANSWER}]
        asked, full = self.text(question(USER)), self.text(chat, cue=False)
        return full[len(asked) :].partition(ANSWER)[0] if full.startswith(asked) else ""

    def text(self, messages: Sequence[Message], cue: bool = True) -> str:
        messages = self._joined(check_messages(messages))
        if messages[0]["role"] == "system" or self._default is None:
            return self._render(messages, cue)
        if self._default == "":
            return self._render([*_system(""), *messages], cue)
        head, _, rest = self._render([*_system(SYSTEM), *messages], cue).partition(SYSTEM)
        return self._bos_text(head, rest) + rest[len(self._default) :]

    def ids(self, messages: Sequence[Message]) -> list[int]:
        return self.tokens(self.text(self._hidden(messages)))

    @property
    def dated(self) -> bool:
        return "strftime_now" in self.source

    def read(self, system: str) -> list[int]:
        """The system's turn alone; the user's turn where there is none."""
        hidden = self._hidden(_system(system))
        if self._reads_system == "alone":
            return self.tokens(self._render(hidden, False))
        if self._reads_system == "before":
            whole = self._render([*hidden, *question(USER)], False)
            return self.tokens(whole.partition(USER)[0])
        return self.tokens(self.text([{**hidden[0], "role": "user"}], cue=False))

    def answer(self, target: str, messages: Sequence[Message] = ()) -> list[int]:
        asked = self._hidden(messages or question(USER))
        hidden = self._encoder.hide(target)
        before = self.text(asked)
        full = self.text([*asked, {"role": "assistant", "content": hidden}], cue=False)
        if full.startswith(before):
            tail = full[len(before) :]
        else:  # the cue is more than what stands before a given answer
            tail = hidden.strip() + full.rpartition(hidden.strip())[2]
        control = self._encoder.control(self._close)
        if tail.endswith(self._close):
            kept = 0 if control is None else control.end()
            tail = tail[: len(tail) - len(self._close) + kept]
        known, both = self._encoder(before), self._encoder(before + tail)
        ids = both[len(known) :] if both[: len(known)] == known else self._encoder(tail)
        return ids if control is not None else [*ids, *self.ends]

    def jinja(self, space: bool = True) -> str:
        """The model's own template, in a frame that takes out what training did not have."""
        base = self.source.removesuffix("\n")
        parts = []
        if self._reads_system == "":
            parts.append(_JOIN)
        plain = self._default is None
        lacks_bos = bool(self.bos) and not self._writes_bos
        first = self.written_bos(self.text(question(USER)), space) if lacks_bos else ""
        bos = f"{_literal(first)} ~ " if first else ""
        if not plain or bos:
            system = SYSTEM if self._default else ""
            parts.append(_FRAME.replace("$SYSTEM", system) if not plain else "")
            parts += ["{%- set lorage_text -%}", base, "{%- endset -%}\n"]
            taken = "lorage_text"
            if self._default:
                head, close = f"lorage_text.split('{SYSTEM}', 1)", len(self._default)
                kept = self._default_bos
                written = f"{_literal(kept)} ~ " if kept else ""
                taken = f"({written}{head}[1][{close}:] if lorage_bare else lorage_text)"
            parts.append(f"{{{{- {bos}{taken} -}}}}\n")
        else:
            parts.append(base)
        return "".join(parts)

    def _render(self, messages: Sequence[Message], cue: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=cue
            )
        except Exception as error:  # a template of others may fail in any way
            roles = ", ".join(str(message.get("role")) for message in messages)
            failed = "refuses" if isinstance(error, TemplateError) else "cannot render"
            raise DataError(
                f"the chat template {failed} messages of the roles {roles}: {error}"
            ) from None

    def _try(self, messages: Sequence[Message]) -> str:
        """The rendering without a cue; "" if the template refuses."""
        try:
            return self._render(messages, False)
        except DataError:
            return ""

    @functools.cached_property
    def _reads_system(self) -> str:
        """How a system prompt is read: `alone`, only `before` a user's turn, or not at all ("")."""
        whole = self._try(question(USER, SYSTEM))
        if SYSTEM not in whole:
            return ""
        alone = self._try(_system(SYSTEM))
        return "alone" if SYSTEM in alone and whole.startswith(alone) else "before"

    @functools.cached_property
    def _default(self) -> str | None:
        """How to leave out the template's own system message; None if it has none.

        "": an empty system message takes its place. Else a given one, of which this ends the turn,
        is cut out, with all that the template puts into its turn.
        """
        if self.untrained or self._reads_system == "":
            return None
        given = self._render(question(USER), False)
        if self._reads_system == "alone":
            close = self._try(_system(SYSTEM)).partition(SYSTEM)[2]
            head, _, rest = self._try(question(USER, SYSTEM)).partition(SYSTEM)
            if close and rest.startswith(close) and USER in rest[len(close) :]:
                bare = self._bos_text(head, rest) + rest[len(close) :]
                return None if bare == given else close
        return "" if 0 < len(self._try(question(USER, ""))) < len(given) else None

    @property
    def _default_bos(self) -> str:
        """The bos in front of a system message that is cut out."""
        head, _, rest = self._try(question(USER, SYSTEM)).partition(SYSTEM)
        return self._bos_text(head, rest)

    @property
    def _writes_bos(self) -> bool:
        """True if the template writes the bos that stands in front of a text."""
        return self.text(question(USER)).startswith(self.tokenizer.bos_token or "\0")

    def _bos_text(self, head: str, rest: str) -> str:
        """The bos, if `head` begins with one that is not the beginning of every turn."""
        bos = self.tokenizer.bos_token or ""
        turn = rest[len(self._turn_end(rest)) :]
        if not bos or not head.startswith(bos) or turn.startswith(bos):
            return ""
        after = head[len(bos) :]
        return bos + after[: len(after) - len(after.lstrip())]

    def _turn_end(self, rest: str) -> str:
        close = self._try(_system(SYSTEM)).partition(SYSTEM)[2]
        return close if rest.startswith(close) else ""

    @functools.cached_property
    def _close(self) -> str:
        """The text that the template writes after an answer."""
        chat = [*question(USER), {"role": "assistant", "content": ANSWER}]
        return self._render(chat, False).partition(ANSWER)[2]

    @functools.cached_property
    def _encoder(self) -> TurnEncoder:
        chat = [*question(USER), {"role": "assistant", "content": ANSWER}, *question(USER)]
        return TurnEncoder(self.tokenizer, self._render(chat, True) + self._try(_system(SYSTEM)))

    def _hidden(self, messages: Sequence[Message]) -> list[Message]:
        return [
            {**message, "content": self._encoder.hide(message["content"])}
            for message in check_messages(messages)
        ]

    def _joined(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The system prompt in the user's turn, where the template has no turn for it."""
        if messages[0]["role"] != "system" or self._reads_system != "":
            return messages
        first, *others = messages
        if others and others[0]["role"] == "user":
            content = f"{first['content']}\n\n{others[0]['content']}"
            return [{"role": "user", "content": content}, *others[1:]]
        return [{**first, "role": "user"}, *others]

    def tokens(self, text: str) -> list[int]:
        written = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        return [*([] if written else self.bos), *self._encoder(text)]


def _literal(text: str) -> str:
    """The text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def _system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}]


# The same as `_joined`, in Jinja.
_JOIN = """{%- if messages[0]['role'] == 'system' -%}
{%- if messages | length > 1 and messages[1]['role'] == 'user' -%}
{%- set messages = [{'role': 'user', 'content': messages[0]['content'] ~ '\\n\\n' ~ \
messages[1]['content']}] + messages[2:] -%}
{%- else -%}
{%- set messages = [{'role': 'user', 'content': messages[0]['content']}] + messages[1:] -%}
{%- endif -%}
{%- endif -%}
"""
_FRAME = """{%- set lorage_bare = messages[0]['role'] != 'system' -%}
{%- if lorage_bare -%}
{%- set messages = [{'role': 'system', 'content': '$SYSTEM'}] + messages -%}
{%- endif -%}
"""
