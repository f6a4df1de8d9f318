"""The protocol of methods: they are discovered, prepare prompts and place the edge."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax import methods
from lorage_jax.config import DataConfig, ExperimentConfig, OptimizerConfig, Source
from lorage_jax.errors import ConfigError, TrainingError
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.files.journal import Journal
from lorage_jax.files.safetensors import read_tensors, save
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.pool import expert_leaves
from lorage_jax.generator.store import save_generator
from lorage_jax.generator.trees import flatten
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods import lora_gen as lora_gen_module
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import (
    METHODS,
    Conditioning,
    Method,
    Placement,
    get_method,
    register,
)
from lorage_jax.methods.training import train
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import Leaf
from lorage_jax.train.edge_loss import query_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.step import Loss
from tests.tiny import make_generator, padded_batch
from tests.train.test_generator import interrupt_at

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
    assert methods.registry is METHODS
    with pytest.raises(ConfigError, match=r"no method 'nothing'; expected .*bare, "):
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
    assert unmerged.model.params is edge.params and unmerged.model.card is None
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


# A method defined in this file only: one expert, with a trained strength per layer.


@register
@dataclass(frozen=True, eq=False)
class OneExpert(Method, Trainable):
    """A LoRA of rank 1 without prompts, with a trained strength per layer."""

    name: ClassVar[str] = "one_expert"
    what: ClassVar[str] = "a LoRA of rank 1 with a trained strength per layer"
    result: ClassVar[str] = "one_expert"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)

    trained: dict

    @classmethod
    def load(cls, edge, source=None):
        leaves = cls.leaves(edge.config)
        shapes = {name: leaf.shape for name, leaf in flatten(leaves).items()}
        arrays = read_tensors(source / "arrays.safetensors", shapes)
        tree = jax.tree.structure(leaves)
        return cls(jax.tree.unflatten(tree, [jnp.asarray(arrays[name]) for name in sorted(shapes)]))

    def prepare(self, prompts):
        return [Conditioning()] * len(prompts)

    def place(self, edge, rows):
        pool = self.pool(self.trained, edge.fingerprint)
        gates = np.asarray(self.trained["strength"])
        return Placement(merge(edge, pool, Card(gates, pool.generator, edge.fingerprint)))

    @staticmethod
    def leaves(edge):
        strength = Leaf((edge.layers, 1), ("layers", "experts"), "ones")
        return {"pool": expert_leaves(edge, 1, 1, "per_layer"), "strength": strength}

    @staticmethod
    def pool(trained, identity=""):
        return Pool(trained["pool"], "factors", 1.0, "per_layer", identity)

    @classmethod
    def training(cls, config, models, layout):
        decoder = Decoder(models["edge"], remat=config.remat, layout=layout)
        prompts = config.data.prompts_per_batch // config.optimizer.accumulate

        def loss(trained, statistics, frozen, micro, key):
            gates = jnp.broadcast_to(trained["strength"], (prompts, *trained["strength"].shape))
            pool = cls.pool(trained)
            return Loss(query_nll(decoder, frozen["edge"], pool, gates, micro.queries, key))

        return Training(cls.leaves(models["edge"]), loss)

    @classmethod
    def finish(cls, config, models, trained, statistics):
        arrays = flatten(trained)

        def write(folder):
            folder.mkdir()
            save(folder / "arrays.safetensors", arrays, {})

        return Trained(fingerprint_arrays(arrays), write)


def test_a_method_of_this_file_trains_resumes_and_places_itself(edge, pair, tmp_path, monkeypatch):
    """It uses the common registry, step and loop; no other file mentions it."""
    config = ExperimentConfig(
        cloud=str(pair[0]),
        edge=str(pair[1]),
        out=str(tmp_path / "whole"),
        method="one_expert",
        data=DataConfig(
            (Source("synthetic", "synthetic", name="words"),),
            prompts_per_batch=8,
            queries_per_prompt=1,
            max_prompt_tokens=64,
            max_query_tokens=64,
            min_bucket=64,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=1),
        steps=6,
        dtype="float32",
        remat="none",
        save_every=3,
    )
    whole = train(config, progress=False)
    assert whole.folder == tmp_path / "whole" / "one_expert"
    assert whole.losses[-1][1] < whole.losses[0][1]

    half = dataclasses.replace(config, out=str(tmp_path / "half"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(half, progress=False)
    rest = train(half, resume=True, progress=False)
    assert rest.first_step == 3 and rest.losses == whole.losses[3:]
    assert rest.fingerprint == whole.fingerprint
    with pytest.raises(TrainingError, match='method: saved "one_expert", now null'):
        train(dataclasses.replace(half, method=None), resume=True, progress=False)

    method = get_method("one_expert").load(edge, rest.folder)
    placed = method.place(edge, method.prepare(PROMPTS))
    tokens, mask = padded_batch(rows=2)
    moved = np.asarray(forward(placed.model, tokens, mask) - forward(edge, tokens, mask))
    assert np.abs(moved[mask]).max() > 1e-3
    with pytest.raises(
        ConfigError, match=r"bare has nothing to train; expected .*lora, lora_gen, "
    ):
        train(dataclasses.replace(config, method="bare"), progress=False)
    with pytest.raises(ConfigError, match="settings is a DataConfig; the method one_expert"):
        train(dataclasses.replace(config, settings=config.data), progress=False)
    with pytest.raises(ConfigError, match="one_expert cannot continue from a folder"):
        train(dataclasses.replace(half, out=str(tmp_path / "a"), init="some"), progress=False)


@dataclass(frozen=True)
class Strength:
    value: float = 0.5


def test_settings_are_those_of_the_method():
    class WithSettings(OneExpert):
        settings = Strength

    data = DataConfig((Source("synthetic", "synthetic", name="words"),))
    config = ExperimentConfig("cloud", "edge", "out", data, steps=60)
    assert settings_of(OneExpert, config) is None
    assert settings_of(WithSettings, config) == Strength(0.5)
    config = dataclasses.replace(config, settings=Strength(0.7))
    assert settings_of(WithSettings, config).value == 0.7
    with pytest.raises(ConfigError, match="settings is a Strength; the method one_expert e"):
        settings_of(OneExpert, config)
    assert (OneExpert.prompt_reader(), LoraGen.prompt_reader()) == (None, "cloud")
