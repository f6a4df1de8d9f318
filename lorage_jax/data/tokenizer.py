"""A tokenizer of one's own, for models that are pretrained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorage_jax.errors import ConfigError


def train_tokenizer(texts: Sequence[str], vocab_size: int, bos: bool, family: str = "llama") -> Any:
    """A byte-level BPE tokenizer of these texts; ids 0, 1 and (with `bos`) 2: pad, end, begin.

    It may have fewer than `vocab_size` tokens when the texts are few. `family`: of the model whose
    folder it will be saved in, as transformers reads a qwen2 folder's tokenizer in its own way.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    special = ["<pad>", "</s>"] + ["<s>"] * bos
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(special) + len(alphabet):
        raise ConfigError(
            f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least "
            f"{len(special) + len(alphabet)}: {len(alphabet)} bytes and {', '.join(special)}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family == "qwen2":
        # Whatever tokenizer.json says, the loaded one will split texts like this.
        qwen = Qwen2Tokenizer().backend_tokenizer
        tokenizer.normalizer, tokenizer.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
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
        # Never used, but without one of ours transformers would add its own as a new id.
        **({"unk_token": "</s>"} if family == "qwen2" else {}),
    )
