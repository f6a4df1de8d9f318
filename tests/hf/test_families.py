"""A family is one file: a made-up one loads, runs, exports and is recorded like the others."""

import json

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.config import RopeScaling
from lorage_jax.errors import ConfigError
from lorage_jax.fields import to_dict
from lorage_jax.hf import family as registry
from lorage_jax.hf.config import model_config
from lorage_jax.hf.family import (
    IMPLIED,
    Family,
    Row,
    family_decoder,
    from_values,
    get_family,
    to_text,
    to_values,
)
from lorage_jax.hf.load import load_model
from lorage_jax.hf.save import save_model
from lorage_jax.models.model import Model, forward
from lorage_jax.models.presets import random_model
from tests.tiny import FAMILIES, VOCAB, byte_tokenizer

SIZES = {"vocab_size": VOCAB, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48}
# Llama's arithmetic but for norms, embeddings and a bias; a field and a tensor of its own names.
MADE_UP = Family(
    "helium",  # one that transformers can read
    "HeliumForCausalLM",
    fields={"norm_offset": 0.5, "scaled_embedding": True, "qkv_bias": True, "out_bias": False},
    read=lambda get: {"final_softcap": get("loudest")},
    reads=frozenset({"loudest"}),
    write=lambda config: {"hidden_act": "silu", "loudest": config.final_softcap},
    rows={"gate": Row("mlp.door.weight", 1)},
    shapes={},
)


@pytest.fixture
def made_up(monkeypatch):
    get_family("llama")
    monkeypatch.setitem(registry._REGISTRY, "helium", MADE_UP)
    return family_decoder("helium", **SIZES, final_softcap=5.0)


def test_a_made_up_family(made_up, tmp_path):
    model = random_model(made_up, "float32")
    model = Model(model.config, model.params, byte_tokenizer())
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config.final_softcap == 5.0 and loaded.config.norm_offset == 0.5
    tokens = np.arange(1, 9, dtype=np.int32)[None]
    logits = np.asarray(forward(loaded, tokens))
    np.testing.assert_allclose(logits, forward(model, tokens), atol=1e-6)
    plain = loaded.replace(config=family_decoder("llama", **SIZES, qkv_bias=True))
    assert np.abs(logits - np.asarray(forward(plain, tokens))).max() > 0.1
    lg.export_merged(loaded, tmp_path / "out")
    again = load_model(tmp_path / "out")
    np.testing.assert_array_equal(forward(again, tokens), logits)


def test_another_family_does_not_read_its_fields(made_up, tmp_path):
    save_model(
        Model(made_up, random_model(made_up, "float32").params, byte_tokenizer()), tmp_path / "m"
    )
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values |= {"model_type": "llama"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    assert model_config(tmp_path / "m").final_softcap is None


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_configs_leave_out_what_the_family_implies(name):
    """So that configs which version 0.1.0 recorded load, and match those of today."""
    config = family_decoder(name, **SIZES)
    values = to_values(config)
    assert set(to_dict(config)) - set(values) == set(IMPLIED)
    assert {"norm_offset", "scaled_embedding", "post_norms"} < set(IMPLIED)
    assert from_values(json.loads(json.dumps(values))) == config
    assert config.norm_offset == (1.0 if "gemma" in name else 0.0)
    other = family_decoder(name, **SIZES, norm_offset=0.25)
    assert from_values(to_values(other)) == other != config


def test_texts_of_configs_differ_with_what_is_computed():
    """They are part of the keys under which scores are kept."""
    yarn = {"kind": "yarn", "factor": 4.0}
    configs = [
        family_decoder("llama", **SIZES, **fields)
        for fields in (
            {},
            {"unrotated": (True, False)},
            {"local_rope_theta": 5.0},
            {"rope_scaling": RopeScaling(**yarn)},
            {"rope_scaling": RopeScaling(**yarn, attention_factor=1.5)},
        )
    ]
    assert len({to_text(config) for config in configs}) == len(configs)


def test_unknown_and_doubled_names():
    with pytest.raises(ConfigError, match="family is 'nothing'; expected one of gemma, gemma2, "):
        get_family("nothing")
    with pytest.raises(ConfigError, match="two families are called 'llama'"):
        registry.register(Family("llama", "LlamaForCausalLM"))
