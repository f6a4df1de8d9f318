"""A tokenizer as llama.cpp reads it, recognised by its structure and not by its name.

llama.cpp does not normalise texts to NFC, as the tokenizers of Qwen do, and some tokenizers put no
space in front of a text that begins with one, where it puts a second. Tokens with names like `</s>`
end a text there, whatever they are. All other texts have the same tokens.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from lorage_jax.errors import ConfigError, WeightsError, did_you_mean

_log = logging.getLogger(__name__)
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "\u2581"  # stands for a space in SentencePiece's tokens
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# How byte-level tokenizers split texts, and if they look up whole pieces before they merge -> the
# names of the same in llama.cpp, of which the first is written.
SPLITS: dict[tuple[tuple[Any, ...], bool], tuple[str, ...]] = {
    (("ByteLevel",), False): ("gpt-2", "phi-2", "olmo", "mpt"),
    (("Digits", "ByteLevel"), False): ("smollm", "starcoder", "refact", "command-r", "exaone"),
    ((_WORDS + r"\p{N}" + _REST,), False): ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"),
    ((_WORDS + r"\p{N}{1,3}" + _REST,), True): ("llama-bpe", "llama3", "llama-v3", "falcon3"),
    ((_WORDS + r"\p{N}{1,3}" + _REST,), False): ("smaug-bpe", "dbrx"),
}
NAMES = {name: split for split, names in SPLITS.items() for name in names}
# llama.cpp's names of other ways, which no tokenizer is recognised by and no file is read with.
UNREAD = frozenset(
    "a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell deepseek-coder "
    "deepseek-llm deepseek-v3 default exaone-moe exaone4 falcon falcon-h1 gemma4 gigachat glm4 "
    "gpt-4o gpt3-finnish granite-docling grok-2 hunyuan hunyuan-dense jais jais-2 joyai-llm "
    "kanana2 kimi-k2 kormo lfm2 llada-moe llama4 mellum midm-2.0 minerva-7b minimax-m2 "
    "modern-bert pixtral poro-chat qwen35 roberta-bpe sarvam-moe seed-coder solar-open superbpe "
    "tekken tiny_aya trillion viking youtu".split()
)


class Kind(IntEnum):
    """llama.cpp's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens and rules.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece's.
        pre: llama.cpp's name of the way in which texts are split before tokens are looked up.
        tokens, kinds: one per id, up to the size of the model's vocabulary.
        scores: one per id; the highest is merged first. Empty for `gpt2`.
        merges: pairs "a b" in their order. Empty for `llama`.
        space_prefix: a space is put in front of every text.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    space_prefix: bool


def read_vocabulary(tokenizer: Any, size: int, pre: str | None = None) -> Vocabulary:
    """Reads a tokenizer of transformers.

    `size`: tokens in the model's vocabulary, of which the tokenizer may lack the last. `pre`: the
    way to split texts, for byte-level tokenizers whose own is not in SPLITS. Raises WeightsError
    for a tokenizer that llama.cpp does not have, and for one that is larger than the model, and
    ConfigError for a `pre` that is not known, or that is another than the tokenizer's own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown("it has no tokenizer.json")
    # The loaded tokenizer, not the file: transformers replaces parts of some.
    values = json.loads(backend.to_str())
    model = values["model"]
    if model["type"] != "BPE":
        raise _unknown(f"its model is {model['type']}, expected BPE")
    if not model["merges"]:
        raise _unknown("it merges nothing")
    tokens, kinds = _tokens(tokenizer, values["added_tokens"], size)
    merges = [tuple(one.split(" ") if isinstance(one, str) else one) for one in model["merges"]]
    if not model["byte_fallback"]:
        own = _byte_level(values, pre)
        return Vocabulary("gpt2", own, tokens, kinds, [], [" ".join(one) for one in merges], False)
    if pre is not None:
        raise ConfigError("--pre is for byte-level tokenizers; this one is SentencePiece's.")
    added = {one["id"] for one in values["added_tokens"]}
    for number, token in enumerate(tokens):
        if BYTE.fullmatch(token):
            kinds[number] = Kind.BYTE
        elif token == tokenizer.unk_token:
            kinds[number] = Kind.UNKNOWN
        elif number in added and kinds[number] == Kind.USER_DEFINED:
            tokens[number] = token.replace(SPACE, " ")
    scores = _scores(tokens, kinds, merges)
    return Vocabulary("llama", "default", tokens, kinds, scores, [], _space_prefix(values))


def _unknown(reason: str) -> WeightsError:
    return WeightsError(
        f"llama.cpp has no tokenizer like this model's: {reason}. Use the Hugging Face folder."
    )


def _tokens(tokenizer: Any, added: list[dict[str, Any]], size: int) -> tuple[list[str], list[int]]:
    """Token and kind of every id; ids without a token are unused."""
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [int(Kind.UNUSED)] * size
    special = {one["id"]: one["special"] for one in added}
    for token, number in tokenizer.get_vocab().items():
        if number >= size:
            raise WeightsError(
                f"the tokenizer's {token!r} is number {number}; the model's vocabulary has {size}. "
                "llama.cpp refuses such a file. Take the token out of the tokenizer."
            )
        tokens[number] = token
        kinds[number] = int(Kind.NORMAL)
        if number in special:
            kinds[number] = int(Kind.CONTROL if special[number] else Kind.USER_DEFINED)
    return tokens, kinds


def _parts(values: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer; a sequence's, one after the other."""
    if values is None:
        return []
    if values["type"] == "Sequence":
        return [part for one in values[inside] for part in _parts(one, inside)]
    return [values]


def _byte_level(values: dict[str, Any], pre: str | None) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer splits texts."""
    normal = [part["type"] for part in _parts(values["normalizer"], "normalizers")]
    steps = _parts(values["pre_tokenizer"], "pretokenizers")
    if normal not in ([], ["NFC"]):
        raise _unknown(f"it normalises texts by {', '.join(normal)}")
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise _unknown("it is neither byte-level nor SentencePiece's")
    if steps[-1]["add_prefix_space"]:
        raise _unknown("it puts a space in front of every text")
    found = tuple(filter(None, map(_splits, steps)))
    names = SPLITS.get((found, bool(values["model"]["ignore_merges"])))
    if pre is not None:
        return _named(pre, names)
    if names is None:
        raise WeightsError(
            "it is not known under which name llama.cpp splits texts as this tokenizer does "
            f"(steps: {', '.join(part['type'] for part in steps)}). Give the name, if you know it: "
            "lorage export --pre NAME (Python: pre=)."
        )
    return names[0]


def _named(pre: str, recognised: tuple[str, ...] | None) -> str:
    """Returns `pre`, the user's name for the way in which a tokenizer splits texts.

    `recognised`: the names by which it is recognised, if it is. Raises ConfigError for others.
    """
    if pre not in NAMES and pre not in UNREAD:
        known = recognised or (*NAMES, *sorted(UNREAD))
        hint = did_you_mean(pre, known) or f"; expected one of {', '.join(known)}."
        raise ConfigError(f"--pre is {pre!r}, which is not known as a name of llama.cpp's{hint}")
    if recognised is not None and pre not in recognised:
        raise ConfigError(
            f"--pre is {pre!r}, but this tokenizer splits texts as llama.cpp's {recognised[0]}. "
            "Leave --pre out."
        )
    if pre in UNREAD:
        _log.warning(
            "lorage_jax does not know how llama.cpp's %s splits texts: it cannot read the file, "
            "nor tell whether the tokens are those of this tokenizer.",
            pre,
        )
    return pre


def _splits(part: dict[str, Any]) -> str | None:
    """One step in the spelling of SPLITS; None for one that splits nothing."""
    if part["type"] == "ByteLevel":
        return "ByteLevel" if part["use_regex"] else None
    if part["type"] == "Digits" and part["individual_digits"]:
        return "Digits"
    if part["type"] == "Split" and (part["behavior"], part["invert"]) == ("Isolated", False):
        return part["pattern"].get("Regex", "?")
    return "?"


def _space_prefix(values: dict[str, Any]) -> bool:
    """True if a space is put in front of a text. Raises WeightsError for other rules."""
    prefix = False
    for part in _parts(values["normalizer"], "normalizers"):
        replaced = (part.get("pattern"), part.get("content")) == ({"String": " "}, SPACE)
        if part["type"] == "Prepend" and part["prepend"] == SPACE:
            prefix = True
        elif part["type"] != "Replace" or not replaced:
            raise _unknown(f"it normalises texts by {part['type']}")
    for part in _parts(values["pre_tokenizer"], "pretokenizers"):
        if part["type"] == "Metaspace" and not part["split"] and part["replacement"] == SPACE:
            prefix = prefix or part["prepend_scheme"] != "never"
        elif part["type"] != "Split" or part["pattern"] != {"String": " "}:
            raise _unknown(f"it splits texts by {part['type']}")
    return prefix


def _scores(tokens: list[str], kinds: list[int], merges: list[tuple[str, ...]]) -> list[float]:
    """Minus the rank of the first merge that gives a token; llama.cpp merges the highest first."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == Kind.NORMAL}
    known = set(merges)
    # llama.cpp merges any two tokens that spell a third.
    others = sum(
        any(
            {token[:at], token[at:]} <= normal and (token[:at], token[at:]) not in known
            for at in range(1, len(token))
        )
        for token in normal
    )
    if others:
        _log.warning(
            "llama.cpp may split some texts otherwise than this tokenizer, which has %d tokens "
            "that are spelled by a pair it does not merge.",
            others,
        )
    last = len(merges)
    return [
        -float(ranks.get(token, last)) if kind == Kind.NORMAL else 0.0
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def add_tokenizer_keys(writer: Any, vocabulary: Vocabulary) -> None:
    """Adds the vocabulary to a file."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_token_merges(vocabulary.merges)
