"""Tokenizers of folders with unusual files: Mistral's tekken.json, SentencePiece's alone."""

import base64
import io
import json
import sys

import pytest

from lorage_jax.errors import WeightsError
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.hf.tokenizer import InventedTokenizerError, load_tokenizer
from tests.tiny import make_tiny

SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
PIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"  # of a file of SentencePiece


def tekken():
    """A file of Mistral's format with a token per byte."""
    one = [base64.b64encode(bytes([i])).decode() for i in range(256)]
    return {
        "config": {
            "pattern": r"\p{L}+|\p{N}|\s+|.",
            "default_vocab_size": len(one) + len(SPECIAL),
            "default_num_special_tokens": len(SPECIAL),
        },
        "vocab": [
            {"rank": i, "token_bytes": token, "token_str": None} for i, token in enumerate(one)
        ],
        "special_tokens": [
            {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(SPECIAL)
        ],
    }


def test_a_folder_with_mistrals_tokenizer_alone(tmp_path):
    """Its tokenizer is read, and travels with an export."""
    make_tiny("mistral", tmp_path / "edge", tokenizer=False)
    (tmp_path / "edge" / "tekken.json").write_text(json.dumps(tekken()))
    model = load_model(tmp_path / "edge")
    ids = model.tokenizer("hi [INST]").input_ids
    assert ids == [5 + ord("h"), 5 + ord("i"), 5 + ord(" "), 3]
    export_merged(model, tmp_path / "out")
    assert load_model(tmp_path / "out").tokenizer("hi [INST]").input_ids == ids
    (tmp_path / "edge" / "tekken.json").write_text("{}")
    with pytest.raises(WeightsError, match="no usable tokenizer"):
        load_model(tmp_path / "edge")


@pytest.mark.parametrize("family", ["qwen2", "gemma", "opt"])
def test_a_tokenizer_that_is_made_up_is_known_by_its_vocabulary(tmp_path, family):
    """Whatever other files there are, tokens that are added to it included."""
    make_tiny(family, tmp_path, tokenizer=False)
    (tmp_path / "spiece.model").write_bytes(PIECE)
    added = {"300": {"content": "<tool>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(InventedTokenizerError, match="makes up a tokenizer without a vocabulary"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_file_alone_needs_its_package(tmp_path, monkeypatch, caplog):
    make_tiny("llama", tmp_path, tokenizer=False)
    (tmp_path / "tokenizer.model").write_bytes(PIECE)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(WeightsError) as refused:
        load_model(tmp_path)
    assert "pip install sentencepiece" in str(refused.value)
    assert "tiktoken" not in str(refused.value) + caplog.text
    (tmp_path / "tokenizer.model").write_text("IQ== 0\n")  # of tiktoken, as Llama 3's
    with pytest.raises(WeightsError, match="tiktoken"):
        load_model(tmp_path)


def test_a_sentencepiece_file_alone(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="extra: sentencepiece")
    make_tiny("llama", tmp_path, tokenizer=False)
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three four"] * 20),
        model_writer=made,
        model_type="bpe",
        vocab_size=40,
        byte_fallback=False,
    )
    (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_model(tmp_path).tokenizer
    assert tokenizer.decode(tokenizer("two one", add_special_tokens=False).input_ids) == "two one"
