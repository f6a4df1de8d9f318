"""Two small tokenizers with different vocabularies."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lorage_jax.data.templates import edge_prompt_with_system, edge_target
from lorage_jax.data.tokenizer import add_own_bos
from lorage_jax.world import prompts as world_prompts


def _texts() -> list[str]:
    records = world_prompts.draw("train", 300, seed=9, family="words")
    texts = [edge_prompt_with_system(r.system, r.user) + edge_target(r.target) for r in records]
    return [*texts, "Zebras? Quick; vexing: jumps, 0123456789!"]


@pytest.fixture(scope="session")
def cloud():
    """Byte-level BPE with bos, which it puts in front of texts, eos and pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    add_own_bos(fast)
    return fast


@pytest.fixture(scope="session")
def edge():
    """Like SentencePiece, with a space before every text; eos, but no bos and no pad."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<eos>", *(f"<0x{b:02X}>" for b in range(256))],
        max_token_length=8,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
