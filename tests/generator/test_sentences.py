"""A frozen sentence encoder: its vectors against transformers, one text at a time; its folders."""

import json

import numpy as np
import pytest
import torch
import transformers

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator import sentences
from lorage_jax.generator.sentences import load_encoder, packaged_encoder, vector_width
from tests.tiny import make_encoder

TEXTS = ["say it twice", "shout", "say it", "it twice say shout it say shout twice it"]


@pytest.fixture
def folder(tmp_path):
    return make_encoder(tmp_path / "encoder")


def states(folder, text, longest):
    model = transformers.BertModel.from_pretrained(str(folder)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(text)["input_ids"]
    ids = ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.parametrize("cls", [False, True])
def test_vectors_are_pooled_as_the_folder_says(folder, cls):
    """Whatever else is in the batch; cut at the folder's limit."""
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    plain = load_encoder(folder)
    assert plain.pooling.mode == ("cls" if cls else "mean") and not plain.pooling.normalise
    (folder / "modules.json").write_text(json.dumps([{"type": "x.Normalize"}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    encoder = load_encoder(folder)
    assert encoder.fingerprint != plain.fingerprint and vector_width(folder) == 16
    for text, own, one in zip(TEXTS, plain(TEXTS), encoder(TEXTS), strict=True):
        whole = states(folder, text, 99)
        np.testing.assert_allclose(own, whole[0] if cls else whole.mean(0), atol=1e-5)
        cut = states(folder, text, 6)
        expected = cut[0] if cls else cut.mean(0)
        np.testing.assert_allclose(one, expected / np.linalg.norm(expected), atol=1e-5)
    assert [encoder.tokens(text) > 6 for text in TEXTS] == [False, False, False, True]


def test_a_text_is_read_once(folder):
    encoder = load_encoder(folder)
    first = encoder(TEXTS)
    encoder.model.forward = lambda **_: pytest.fail("read again")
    np.testing.assert_array_equal(encoder([TEXTS[1], TEXTS[0]]), first[[1, 0]])


def test_folders_that_are_none(folder, tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="is not a sentence encoder"):
        load_encoder(tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(WeightsError, match="another pooling than mean or cls"):
        load_encoder(folder)
    monkeypatch.setattr(sentences, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs torch"):
        load_encoder(folder)
    with pytest.raises(ConfigError, match="all_minilm_l6_v2 is not installed"):
        packaged_encoder(tmp_path / "new")
    assert packaged_encoder(folder) == folder
