"""Training a tokenizer, for models that are pretrained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from lorage_jax.errors import ConfigError


def add_own_bos(tokenizer: Any) -> None:
    """Makes `tokenizer(text)` put the tokenizer's bos, if it has one, in front of every text."""
    if tokenizer.bos_token is None:
        return
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A",
        pair=f"{tokenizer.bos_token} $A $B",
        special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
    )


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, bos: bool, like: Tokenizer | None = None
) -> Any:
    """Trains a byte-level BPE tokenizer.

    Args:
        texts: training texts; if there are few, the result may have fewer than `vocab_size` tokens.
        vocab_size: number of tokens, special ones included.
        bos: add a bos token. Ids 0, 1 and 2 are pad, eos and bos.
        like: normalise and split texts as this tokenizer does. Needed for model families whose
            tokenizer class in transformers has rules of its own, whatever tokenizer.json holds.

    Raises ConfigError if `vocab_size` leaves no room for the bytes.
    """
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>"] + ["<s>"] * bos
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(special) + len(alphabet):
        raise ConfigError(
            f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least "
            f"{len(special) + len(alphabet)}: {len(alphabet)} bytes and {', '.join(special)}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if like is not None:
        tokenizer.normalizer, tokenizer.pre_tokenizer = like.normalizer, like.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        **({"bos_token": "<s>"} if bos else {}),
        # Unused, but such a class would otherwise add an unknown token of its own.
        **({"unk_token": "</s>"} if like is not None else {}),
    )
