"""The protocol of methods: the registry finds them, each prepares prompts and places itself."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from lorage_jax.errors import ConfigError
from lorage_jax.files.journal import Journal
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.store import save_generator
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods import lora_gen as lora_gen_module
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import METHODS, Method, get_method, register
from tests.tiny import make_generator, padded_batch

PROMPTS = ["Say it twice.", "Shout."]


@pytest.fixture(scope="module")
def generator(pair):
    return make_generator(*pair)


@pytest.fixture(scope="module")
def edge(pair):
    return load_model(pair[1])


def test_the_registry_finds_every_file_of_the_folder():
    assert get_method("lora_gen") is LoraGen
    assert {"bare", "few_shot", "in_context", "lora", "lora_gen"} <= set(METHODS)
    assert all(name == method.name and method.what for name, method in METHODS.items())
    with pytest.raises(ConfigError, match=r"no method 'nothing'; expected bare, "):
        get_method("nothing")
    with pytest.raises(ConfigError, match="two methods are called 'bare'"):

        @register
        @dataclass(frozen=True)
        class Other(Method):
            name: ClassVar[str] = "bare"
            what: ClassVar[str] = "another"

    assert get_method("bare").__name__ == "Bare"


@pytest.mark.parametrize(
    ("name", "sees", "few_shot"),
    [("bare", False, False), ("in_context", True, False), ("few_shot", True, True)],
)
def test_methods_without_weights(edge, name, sees, few_shot):
    cls = get_method(name)
    assert (cls.edge_sees_prompt, cls.few_shot) == (sees, few_shot)
    method = cls.load(edge)
    rows = method.prepare(PROMPTS)
    assert [row.context for row in rows] == (PROMPTS if sees else [None, None])
    placed = method.place(edge, rows)
    assert placed.model is edge and placed.cards is None and placed.pool is None


def test_lora_gen_merges_one_card_and_keeps_several_unmerged(edge, generator):
    """Both are the same arithmetic."""
    method = LoraGen(generator)
    rows = method.prepare(PROMPTS)
    for row, card in zip(rows, specialize(generator, PROMPTS), strict=True):
        np.testing.assert_array_equal(row.card.gates, card.gates)
        assert row.facts == {"cloud_tokens": card.about["cloud_tokens"]}
    unmerged = method.place(edge, rows)
    assert unmerged.model is edge
    tokens, mask = padded_batch(rows=2)
    logits = forward(edge, tokens, mask, gates=list(unmerged.cards), pool=unmerged.pool)
    for number, row in enumerate(rows):
        merged = method.place(edge, [row] * 2)
        assert merged.cards is None and merged.model.card is row.card
        found = np.asarray(forward(merged.model, tokens, mask))[number][mask[number]]
        expected = np.asarray(logits)[number][mask[number]]
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(found).max())
    with pytest.raises(ConfigError, match="a row has no card"):
        method.place(edge, get_method("bare").load(edge).prepare(PROMPTS))


def test_lora_gen_reads_each_prompt_once(generator, tmp_path, monkeypatch):
    """Also across runs that share a journal."""
    read, real = [], lora_gen_module.specialize

    def spy(generator, prompts):
        read.extend(prompts)
        return real(generator, prompts)

    monkeypatch.setattr(lora_gen_module, "specialize", spy)
    path = tmp_path / "journal.jsonl"
    first = LoraGen(generator, Journal.open(path), batch_rows=1).prepare([*PROMPTS, PROMPTS[0]])
    assert sorted(read) == sorted(PROMPTS)
    again = LoraGen(generator, Journal.open(path)).prepare(PROMPTS)
    assert sorted(read) == sorted(PROMPTS)
    np.testing.assert_array_equal(again[1].card.gates, first[1].card.gates)


def test_lora_gen_cuts_a_prompt_only_when_asked(edge, generator, tmp_path):
    long = "word " * 200
    rows = LoraGen(generator, cut=True).prepare([long, PROMPTS[0]])
    assert [row.facts["cloud_truncated"] for row in rows] == [True, False]
    room = generator.cloud.config.max_positions - generator.edge.layers
    assert rows[0].facts["cloud_tokens"] <= room
    save_generator(generator, tmp_path / "generator")
    loaded = LoraGen.load(edge, tmp_path / "generator")
    assert loaded.generator.fingerprint == generator.fingerprint
    with pytest.raises(ConfigError, match="folder of a generator"):
        LoraGen.load(edge)
