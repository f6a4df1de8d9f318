"""Tiny models that llama.cpp reads."""

import json
import random
import unicodedata

import gguf
from tokenizers import Regex, Tokenizer, pre_tokenizers

from tests.tiny import WINDOW, byte_tokenizer, make_tiny

THIRDS = {"num_attention_heads": 3, "num_key_value_heads": 1}  # of 16 channels: the whole width

ALTERNATING = ["sliding_attention", "full_attention"] * 2
FIVE_OF_SIX = ["sliding_attention"] * 5 + ["full_attention"]
# Families and switches that llama.cpp computes: fields on top of those in VARIANTS, and the length
# of the text, where llama.cpp has no windows.
COMPUTED = {
    "llama": ({}, 40),
    "llama-tied-rope3": ({}, 40),
    "llama-linear": ({}, 40),
    "llama-bias": ({}, 40),
    "mistral": ({}, WINDOW - 1),
    "mistral-full": ({}, 40),
    "qwen2": (THIRDS, WINDOW - 1),
    "qwen2-tied": (THIRDS, 40),
    "qwen3": ({}, WINDOW - 1),
    "gemma": ({}, 40),
    "gemma2": (
        {"num_hidden_layers": 4, "layer_types": ALTERNATING, "query_pre_attn_scalar": 16},
        40,
    ),
    "gemma3_text": (
        {
            "num_hidden_layers": 6,
            "layer_types": FIVE_OF_SIX,
            "query_pre_attn_scalar": 16,
            "final_logit_softcapping": None,
        },
        40,
    ),
    "phi3": (THIRDS, WINDOW - 1),
    "phi3-partial": (THIRDS, 40),
    "olmo2": (THIRDS, 40),
    "granite": ({}, 40),
    "smollm3": ({"num_hidden_layers": 4, "no_rope_layer_interval": 4}, 40),
}


def splitting(pre_tokenizer, **model):
    """The byte tokenizer of the tiny models with three merges and this way to split texts."""
    made = byte_tokenizer()
    values = json.loads(made.backend_tokenizer.to_str())
    merges = [["1", "2"], ["h", "e"], ["he", "y"]]
    vocab = values["model"]["vocab"]
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    vocab["ing"] = len(vocab)  # no merge gives it: it is found only where whole pieces are
    values["model"] |= {"vocab": vocab, "merges": merges, **model}
    made._tokenizer = Tokenizer.from_str(json.dumps(values))
    made._tokenizer.pre_tokenizer = pre_tokenizer
    return made


def tiny_folder(folder, family, **fields):
    """A tiny model whose tokenizer merges; returns the torch model."""
    model = make_tiny(family, folder, tokenizer=False, **fields)
    splitting(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(str(folder))
    return model


def split_as(split):
    """A tokenizer that splits texts as a key of `SPLITS` says."""
    steps, whole = split
    parts = []
    for step in steps:
        if step == "Digits":
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != "ByteLevel":
            parts.append(pre_tokenizers.Split(Regex(step), "isolated"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=steps[-1] == "ByteLevel")
    return splitting(pre_tokenizers.Sequence([*parts, plain]), ignore_merges=whole)


ALPHABET = [*"abcdefgz  .,!?'\n\t019", "the", "ing", "ll", "é", "ß", "中", "🙂", "</s>", "12"]


def texts(count=150, composed=True):
    """Random texts, in NFC if `composed`: llama.cpp does not normalise."""
    draw = random.Random(0)
    alphabet = ALPHABET if composed else [*ALPHABET, "\u0301"]
    made = ("".join(draw.choices(alphabet, k=draw.randint(1, 30))) for _ in range(count))
    return [unicodedata.normalize("NFC", text) if composed else text for text in made]


def rewrite(source, target, keys=None, drop=(), tensors=None):
    """Copies a file with other keys (None: left out), and without some tensors."""
    reader = gguf.GGUFReader(source)
    keys = keys or {}
    name = keys.pop("general.architecture", reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, name)
    skip = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", *keys}
    for key, field in reader.fields.items():
        if key not in skip and field.contents() != []:
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in keys.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            if kind == gguf.GGUFValueType.INT32:  # llama.cpp wants its numbers without a sign
                kind = gguf.GGUFValueType.UINT32
            inner = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
            writer.add_key_value(key, value, kind, inner)
    for tensor in reader.tensors:
        if tensor.name not in drop and tensors is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for extra, values in (tensors or {}).items():
        writer.add_tensor(extra, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
