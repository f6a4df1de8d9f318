"""A transformers tokenizer from the keys of a GGUF file, which splits texts as llama.cpp does.

Like llama.cpp it does not normalise texts to NFC, as the tokenizers of Qwen do in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from lorage_jax.errors import WeightsError
from lorage_jax.gguf.tokenizer import NAMES, SPACE, Kind

PREFIX = "tokenizer.ggml."
NO_TOKENIZER = (None, "none", "no_vocab")
PAD = re.compile(r"\[PAD(\d+)\]")
# Special tokens of Phi-3 take the white space after them, except for these. llama.cpp knows the
# model by its name.
PHI3 = re.compile("phi-?3", re.IGNORECASE)
KEEPING = ("<unk>", "<s>", "<|endoftext|>")
# Names that llama.cpp takes for control tokens (ends of texts, parts of a text to fill), where the
# file has them as added tokens of another kind. Plain text that spells one is no such token.
CONTROLS = frozenset(
    "</s> <eos> [EOS] <EOT> _<EOT> [EOT] <end_of_turn> <end_of_utterance> <turn|> [e~[ "
    "<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> "
    "<|endoftext|> <|end_of_text|> <|tool_response> <\uff5cend▁of▁sentence\uff5c> "
    "<|fim_prefix|> <fim-prefix> <fim_prefix> <PRE> ▁<PRE> <|code_prefix|> <|prefix|> "
    "<|fim_suffix|> <fim-suffix> <fim_suffix> <SUF> ▁<SUF> <|code_suffix|> <|suffix|> "
    "<|fim_middle|> <fim-middle> <fim_middle> <MID> ▁<MID> <|code_middle|> <|middle|> "
    "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> "
    "<reponame> <|file_sep|> <\uff5cfim▁begin\uff5c> "
    "<\uff5cfim▁hole\uff5c> <\uff5cfim▁end\uff5c>".split()
)


def make_tokenizer(keys: Mapping[str, Any], where: Any, pre: str | None = None) -> Any:
    """The tokenizer of a file with these keys; None if it has none.

    Args:
        where: the file, for messages.
        pre: llama.cpp's name of the way to split texts, instead of the file's.

    Raises WeightsError for a tokenizer of another kind, and for a way to split texts that is not
    known.
    """
    model = keys.get(f"{PREFIX}model")
    if model in NO_TOKENIZER:
        return None
    if model not in ("gpt2", "llama"):
        raise WeightsError(
            f"{where}: its tokenizer is of the kind {model!r}; expected gpt2 (byte-level BPE) or "
            "llama (SentencePiece)."
        )
    tokens, kinds = _tokens(keys, where)
    vocabulary = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != Kind.UNUSED or not _is_padding(token, number)
    }
    if model == "gpt2":
        backend, bos = _byte_level(keys, vocabulary, where, pre)
    elif pre is not None:
        raise WeightsError(f"{where}: --pre is for byte-level tokenizers; it has SentencePiece's.")
    else:
        backend, bos = _sentencepiece(keys, vocabulary, tokens, kinds, where), True
    backend.add_tokens(_added(keys, tokens, kinds))
    ids = _special_ids(keys, model == "llama")
    _add_ends(backend, keys, ids, bos)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokens[number] for name, number in ids.items()},
    )
    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        tokenizer.chat_template = template
    return tokenizer


def _tokens(keys: Mapping[str, Any], where: Any) -> tuple[list[str], list[int]]:
    """Token and kind of every id, as llama.cpp takes them."""
    tokens = keys.get(f"{PREFIX}tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise WeightsError(f"{where}: it has a tokenizer without tokens.")
    kinds = keys.get(f"{PREFIX}token_type") or [int(Kind.NORMAL)] * len(tokens)
    if len(kinds) != len(tokens):
        raise WeightsError(f"{where}: {len(tokens)} tokens have {len(kinds)} types.")
    return tokens, [
        int(Kind.CONTROL) if kind == Kind.USER_DEFINED and token in CONTROLS else kind
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _is_padding(token: str, number: int) -> bool:
    """True for a name that stands for no token, up to the size of the model's vocabulary."""
    found = PAD.fullmatch(token)
    return found is not None and int(found[1]) == number


def _byte_level(
    keys: Mapping[str, Any], vocabulary: dict[str, int], where: Any, pre: str | None
) -> tuple[Tokenizer, bool]:
    """Byte-level BPE; True if llama.cpp puts a bos in front by default."""
    name = pre or keys.get(f"{PREFIX}pre")
    if name not in NAMES:
        raise WeightsError(
            f"{where}: it is not known how llama.cpp's tokenizer {name!r} splits texts. If one of "
            f"{', '.join(NAMES)} does it in the same way, name it: lorage import {where} --out DIR "
            "--pre NAME; then use that folder."
        )
    steps, whole = NAMES[name]
    merges = [tuple(merge.split(" ", 1)) for merge in keys.get(f"{PREFIX}merges", [])]
    if not merges:
        raise WeightsError(f"{where}: its tokenizer is damaged; it has no merges.")
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise WeightsError(
                f"{where}: its tokenizer is damaged; the merge {' '.join(pair)!r} is not of tokens."
            )
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    parts: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if step == "Digits"
        else pre_tokenizers.Split(Regex(step), "isolated")
        for step in steps
        if step != "ByteLevel"
    ]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=steps[-1] == "ByteLevel")
    backend.pre_tokenizer = pre_tokenizers.Sequence([*parts, level]) if parts else level
    backend.decoder = decoders.ByteLevel()
    return backend, whole


def _sentencepiece(
    keys: Mapping[str, Any],
    vocabulary: dict[str, int],
    tokens: list[str],
    kinds: list[int],
    where: Any,
) -> Tokenizer:
    """BPE over characters, with the merges that llama.cpp makes of the scores."""
    scores = keys.get(f"{PREFIX}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise WeightsError(f"{where}: its tokenizer lacks the scores of its tokens.")
    merged = [
        number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if len(token) > 1 and kind == Kind.NORMAL
    ]
    if len(merged) > 1 and len({scores[number] for number in merged}) == 1:
        raise WeightsError(
            f"{where}: all tokens have the same score, so that the order of merges is lost. Take a "
            "file that was converted with tokenizer.model, or the Hugging Face folder."
        )
    unknown = _special_ids(keys, True).get("unk")
    bytes_there = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(vocabulary, tokens, scores, merged),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=bytes_there,
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    ends: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if keys.get(f"{PREFIX}add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        ends.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(ends)
    return backend


def _merges(
    vocabulary: dict[str, int], tokens: list[str], scores: list[float], merged: list[int]
) -> list[tuple[str, str]]:
    """All pairs of tokens that spell a third, the highest score first.

    llama.cpp takes the leftmost of equal scores; of the splits of one token, the one with the
    longest beginning is that in most texts.
    """
    found = []
    for number in sorted(merged, key=lambda one: -scores[one]):
        token = tokens[number]
        for at in range(len(token) - 1, 0, -1):
            if token[:at] in vocabulary and token[at:] in vocabulary:
                found.append((token[:at], token[at:]))
    return found


def _added(keys: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> list[AddedToken]:
    """The tokens that are found in a text before it is split."""
    takes_space = PHI3.search(str(keys.get("general.name", ""))) is not None
    found = []
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED) and token:
            stripped = takes_space and token not in KEEPING
            special = kind != Kind.USER_DEFINED
            found.append(AddedToken(token, special=special, normalized=False, rstrip=stripped))
    return found


def _special_ids(keys: Mapping[str, Any], sentencepiece: bool) -> dict[str, int]:
    """The ids of the tokens with a role, by transformers' names of the roles."""
    usual = {"bos": 1, "eos": 2, "unk": 0} if sentencepiece else {}
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    count = len(keys[f"{PREFIX}tokens"])
    found = {
        role: keys.get(f"{PREFIX}{name}_token_id", usual.get(role)) for role, name in names.items()
    }
    return {role: int(number) for role, number in found.items() if number in range(count)}


def _add_ends(backend: Tokenizer, keys: Mapping[str, Any], ids: dict[str, int], bos: bool) -> None:
    """Lets the tokenizer put a bos in front and an eos after, where the file says so.

    `bos`: what llama.cpp does where the file does not say.
    """
    first = keys.get(f"{PREFIX}add_bos_token", bos) and "bos" in ids
    last = keys.get(f"{PREFIX}add_eos_token", False) and "eos" in ids
    if first or last:
        form = [*(["[bos]"] if first else []), "$A", *(["[eos]"] if last else [])]
        special = [(f"[{role}]", ids[role]) for role in ("bos", "eos") if f"[{role}]" in form]
        backend.post_processor = processors.TemplateProcessing(" ".join(form), None, special)
