"""Tiny models that llama.cpp reads."""

import json

from tokenizers import Tokenizer, pre_tokenizers

from tests.tiny import byte_tokenizer, make_tiny

THIRDS = {"num_attention_heads": 3, "num_key_value_heads": 1}  # of 16 channels: the whole width


def splitting(pre_tokenizer, **model):
    """The byte tokenizer of the tiny models with three merges and this way to split texts."""
    made = byte_tokenizer()
    values = json.loads(made.backend_tokenizer.to_str())
    merges = [["1", "2"], ["h", "e"], ["he", "y"]]
    vocab = values["model"]["vocab"]
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    values["model"] |= {"vocab": vocab, "merges": merges, **model}
    made._tokenizer = Tokenizer.from_str(json.dumps(values))
    made._tokenizer.pre_tokenizer = pre_tokenizer
    return made


def tiny_folder(folder, family, **fields):
    """A tiny model whose tokenizer merges; returns the torch model."""
    model = make_tiny(family, folder, tokenizer=False, **fields)
    splitting(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(str(folder))
    return model
