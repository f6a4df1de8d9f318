"""Bodies of requests: JSON in, checked dataclasses out. Unknown fields are ignored."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorage_jax.data.templates import Message
from lorage_jax.infer.chat import DEFAULT_TOKENS
from lorage_jax.infer.sample import Sampling, SamplingError
from lorage_jax.infer.slots import ALTERNATIVES
from lorage_jax.serve.errors import RequestError

MOST_STOPS = 4
CONTINUED_TOKENS = 16  # of an answer of /v1/completions, by default
MOST_PROMPTS = 64  # of one request to /v1/completions
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Fields that change an answer and are not supported, with the values at which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "suffix": (None, ""),
    "echo": (None, False),
    # Of vLLM, SGLang and llama.cpp.
    "repetition_penalty": (None, 1),
    "repeat_penalty": (None, 1),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "logits_processors": (None, []),
    "use_beam_search": (None, False),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "prompt_logprobs": (None,),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "json_schema": (None,),
    "regex": (None,),
    "ebnf": (None,),
    "grammar": (None, ""),
    "audio": (None,),
    "prediction": (None,),
}


@dataclass(frozen=True)
class Settings:
    """The settings that requests for chats and for continuations share.

    Attributes:
        model: `edge`, `edge:CARD`, `CARD` or `edge:auto`.
        most: the most tokens of an answer; None: `usual`, or as many as have room.
        sampling: how tokens are chosen; greedy without a temperature.
        stop: texts before which an answer stops.
        stream: send pieces as they come.
        usage: send the numbers of tokens at the end of a stream.
        alternatives: likeliest tokens to report per token; None: no log-probabilities.
        usual: the most tokens of an answer to a request that names no number.
    """

    model: str
    most: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    alternatives: int | None
    usual: int = DEFAULT_TOKENS


class Fields:
    """The fields of a JSON object, with errors that name them."""

    def __init__(self, body: bytes):
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON: {error}.") from None
        if not isinstance(values, dict):
            raise RequestError(f"the body is {_kind(values)}; expected a JSON object.")
        self.values: dict[str, Any] = values

    def get(self, name: str, kind: type | tuple[type, ...], what: str, default: Any = None) -> Any:
        """A field's value; its default where it is missing or null. Raises RequestError."""
        value = self.values.get(name)
        if value is None:
            return default
        # In JSON, true is no number.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RequestError(f"{name} is {_kind(value)}; expected {what}.", param=name)
        return value

    def text(self, name: str) -> str:
        """A text that must be there."""
        if self.values.get(name) is None:
            raise RequestError(f"{name} is missing; expected a text.", param=name)
        value = self.get(name, str, "a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} is not valid Unicode.", param=name) from None
        return value

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> Any:
        """A whole number within limits."""
        value = self.get(name, int, "a whole number", default)
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name} is {value}; expected {low} to {high}.", param=name)
        return value

    def number(self, name: str, default: float) -> float:
        """A number; one too large for a float is infinite."""
        value = self.get(name, (int, float), "a number", default)
        try:
            return float(value)
        except OverflowError:
            return math.inf

    def refuse_unsupported(self) -> None:
        """Raises RequestError for a known field that would change the answer and cannot."""
        for name, neutral in NEUTRAL.items():
            value = self.values.get(name)
            if not any(_same(value, one) for one in neutral):
                only = " or ".join(json.dumps(one) for one in neutral if one is not None)
                raise RequestError(
                    f"{name} is not supported{f' except as {only}' if only else ''}; leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )


def read_settings(fields: Fields, chat: bool) -> Settings:
    """The settings of a request for a chat, or for a continuation."""
    fields.refuse_unsupported()
    most = fields.whole("max_completion_tokens", 1, 1 << 30)
    if most is None:
        most = fields.whole("max_tokens", 1, 1 << 30)
    if chat:
        asked = fields.get("logprobs", bool, "true or false", False)
        top = fields.whole("top_logprobs", 0, ALTERNATIVES)
        if top is not None and not asked:
            raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
        alternatives = (top or 0) if asked else None
    else:
        alternatives = fields.whole("logprobs", 0, ALTERNATIVES)
    stream = fields.get("stream", bool, "true or false", False)
    options = fields.get("stream_options", dict, "an object", {})
    return Settings(
        model=fields.text("model"),
        most=most,
        sampling=_sampling(fields),
        stop=_stop(fields),
        stream=stream,
        usage=stream and options.get("include_usage") is True,
        alternatives=alternatives,
        usual=DEFAULT_TOKENS if chat else CONTINUED_TOKENS,
    )


def _sampling(fields: Fields) -> Sampling:
    seed = fields.get("seed", int, "a whole number")
    seed = secrets.randbits(32) if seed is None else seed % 2**32
    top_k = max(fields.get("top_k", int, "a whole number", 0), 0)
    top_p = fields.number("top_p", 1.0)
    if top_p == 0:  # of the most likely tokens the fewest: one
        top_k, top_p = 1, 1.0
    try:
        return Sampling(fields.number("temperature", 0.0), top_k, top_p, seed)
    except SamplingError as error:
        raise RequestError(str(error), param=error.field) from None


def _stop(fields: Fields) -> tuple[str, ...]:
    stop = fields.get("stop", (str, list), "a text or a list of texts", [])
    stop = [stop] if isinstance(stop, str) else stop
    if len(stop) > MOST_STOPS or not all(isinstance(one, str) and one for one in stop):
        raise RequestError(f"stop: expected at most {MOST_STOPS} texts, none empty.", param="stop")
    return tuple(stop)


def read_messages(fields: Fields) -> list[Message]:
    """The messages of a chat, each with a role and a text; `developer` is the system's role."""
    given = fields.get("messages", list, "a list of messages")
    if not given:
        raise RequestError("messages is missing or empty; expected a list.", param="messages")
    return [_message(one, i) for i, one in enumerate(given)]


def _message(value: Any, number: int) -> Message:
    where = f"messages[{number}]"
    if not isinstance(value, Mapping):
        raise RequestError(f"{where} is {_kind(value)}; expected an object.", param="messages")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(
            f"{where}.role is {json.dumps(role)[:60]}; expected system, user or assistant.",
            param="messages",
        )
    if value.get("tool_calls") or value.get("function_call"):
        raise RequestError(f"{where} calls tools, which are not supported.", param="messages")
    content = value.get("content")
    if content is None and role == "assistant":  # an earlier answer that said nothing
        content = ""
    return {"role": ROLES[role], "content": _content(content, where)}


def _content(value: Any, where: str) -> str:
    """The text of a message: given as such, or as parts of the type text."""
    if isinstance(value, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in value
    ):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise RequestError(
            f"{where}.content is {_kind(value)}; expected a text, or a list of parts of the type "
            "text.",
            param="messages",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{where}.content is not valid Unicode.", param="messages") from None
    return value


def read_prompts(fields: Fields) -> list[str | list[int]]:
    """The prompts of a request for continuations: texts, or lists of token ids."""
    prompt = fields.get("prompt", (str, list), "a text, token ids, or a list of these")
    if prompt is None or prompt == []:
        raise RequestError("prompt is missing or empty.", param="prompt")
    prompts = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt
    if len(prompts) > MOST_PROMPTS:
        raise RequestError(
            f"there are {len(prompts)} prompts; expected at most {MOST_PROMPTS}.", param="prompt"
        )
    for i, one in enumerate(prompts):
        if not ((isinstance(one, str) and one.strip()) or _is_ids(one)):
            raise RequestError(
                f"prompt {i} is {_kind(one)}; expected a text or token ids, not empty.",
                param="prompt",
            )
    return prompts


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    )


def _same(value: Any, other: Any) -> bool:
    """True for equal values of JSON, in which 1.0 is 1 and true is not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _kind(value: Any) -> str:
    """A value in words, for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "null"
    shown = json.dumps(value)
    return f"{names.get(type(value), 'a number')} ({shown[:60]})"
