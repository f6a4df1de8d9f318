"""lm-eval's switch for chat models: requests in the turns of the model's own chat template."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError

from lorage_jax.data.templates import has_chat_template
from lorage_jax.errors import ConfigError

NO_SYSTEM = (
    "The chat template refuses a system message, so the system instruction and the tasks' "
    "descriptions were left out, as lm-eval's hf model does."
)


@dataclass(frozen=True)
class HostChat:
    """How lm-eval turns a request into a text; the names are lm-eval's.

    Attributes:
        apply_chat_template: render every request as a chat.
        system_instruction: a system message (without a chat, a text) before every request.
        fewshot_as_multiturn: few-shot samples are turns of the chat, not part of the user's turn.
    """

    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True

    def __post_init__(self):
        if not self.apply_chat_template and not self.fewshot_as_multiturn:
            raise ConfigError("--no-fewshot-as-multiturn goes with --apply-chat-template.")

    @property
    def used(self) -> bool:
        """True if requests differ from those without the switch."""
        return self.apply_chat_template or self.system_instruction is not None

    def check(self, tokenizer: Any) -> None:
        """Raises ConfigError if a chat is asked for and the tokenizer has no chat template."""
        if self.apply_chat_template and not has_chat_template(tokenizer):
            raise ConfigError(
                "--apply-chat-template is set, but the model's tokenizer has no chat template "
                "(chat_template.jinja). Leave it out, or name the chat model's folder."
            )

    def arguments(self) -> dict[str, Any]:
        """The arguments of lm-eval's `evaluate`."""
        return {
            "apply_chat_template": self.apply_chat_template,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": self.apply_chat_template and self.fewshot_as_multiturn,
        }


AS_TEXT = HostChat()  # without a chat


class ChatRequests:
    """The part of an lm-eval model that renders chats.

    Attributes:
        tokenizer: with a chat template.
        chat_template_args: further variables of the template.
        system_dropped: True once the template has refused a system message.
    """

    tokenizer: Any
    chat_template_args: Mapping[str, Any] = MappingProxyType({})
    system_dropped: bool = False

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, by which lm-eval keeps requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat by the tokenizer's own template; without system messages, if it refuses them."""
        text, dropped = render_chat(
            self.tokenizer, chat_history, add_generation_prompt, self.chat_template_args
        )
        if dropped and not self.system_dropped:
            logging.getLogger(__name__).warning(NO_SYSTEM)
        self.system_dropped |= dropped
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the chat template, which lm-eval records beside the results."""
        return selected_template(self.tokenizer, chat_template)


def render_chat(
    tokenizer: Any, history: Sequence[Mapping[str, str]], cue: bool, values: Mapping[str, Any]
) -> tuple[str, bool]:
    """Renders a chat by the tokenizer's template; if that refuses it, without system messages.

    Args:
        tokenizer: with a chat template.
        history: messages with `role` and `content`.
        cue: end with the cue to answer; without, the last message is continued.
        values: further variables of the template.

    Returns (text, whether system messages were left out). Raises ConfigError if the template
    refuses the rest as well.
    """

    def rendered(messages: Sequence[Mapping[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=cue,
            continue_final_message=not cue,
            **values,
        )

    rest, reason = [message for message in history if message["role"] != "system"], ""
    for messages in (history, rest):
        try:
            return rendered(messages), messages is rest
        except TemplateError as error:
            reason = str(error)
    roles = ", ".join(message["role"] for message in rest)
    raise ConfigError(f"the chat template refuses messages of the roles {roles}: {reason}")


def selected_template(tokenizer: Any, name: bool | str | None) -> str | None:
    """The text of the chat template that lm-eval records; None if there is none.

    Raises ConfigError if the tokenizer has several and none of this name (True: `default`).
    """
    own = getattr(tokenizer, "chat_template", None)
    if name in (False, None) or not isinstance(own, Mapping):
        return None if name in (False, None) else own
    wanted = name if isinstance(name, str) else "default"
    if wanted not in own:
        raise ConfigError(
            f"there is no chat template {wanted!r}; the tokenizer has {', '.join(sorted(own))}."
        )
    return own[wanted]
