"""Facts about methods, read off what they do."""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np

from lorage_jax import nano
from lorage_jax.compare.facts import (
    bigger_cloud,
    follows_prompts,
    is_merged,
    trained_parameters,
)
from lorage_jax.config import DataConfig, ExperimentConfig, Source
from lorage_jax.files.safetensors import save
from lorage_jax.generator.card import Card
from lorage_jax.hf.load import load_model
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.in_context import InContext
from lorage_jax.methods.in_context_cached import InContextCached
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import Conditioning
from lorage_jax.methods.tuned_cards import TunedCards, TunedFresh
from lorage_jax.models.experts import Pool
from lorage_jax.world.samples import draw_world


def test_an_unseen_task_needs_something_made_of_its_prompt():
    edge, samples = load_model(nano.EDGE), draw_world(4, 1, seed=1, families=("words",))

    class Solved(InContext):
        def prepare(self, prompts):
            return [
                dataclasses.replace(one, facts={"examples": 5}) for one in super().prepare(prompts)
            ]

    found = [
        follows_prompts(method, samples)
        for method in (Bare(), InContext(), InContextCached.load(edge), Solved())
    ]
    assert found == [False, True, True, False]
    one = [
        dataclasses.replace(samples[0], groups=samples[0].groups[:1], tasks=samples[0].tasks[:1])
    ]
    assert follows_prompts(InContext(), one) is None


def test_a_card_may_hold_what_was_made():
    """Equal gates, of experts that differ."""
    samples = draw_world(4, 1, seed=1, families=("words",))

    @dataclass(frozen=True)
    class Made(Bare):
        differ: bool

        def prepare(self, prompts):
            made = [np.full((1, 1, 2, 2), i * self.differ) for i in range(len(prompts))]
            pools = [Pool({"up": {"a": x, "b": x}}, "factors", 1.0, "per_layer") for x in made]
            gates = np.ones((1, 1), np.float32)
            return [Conditioning(card=Card(gates, "", "", {}, pool)) for pool in pools]

    assert [follows_prompts(Made(differ), samples) for differ in (True, False)] == [True, False]


def test_parameters_of_results_that_were_trained_before(tmp_path):
    """Of a generator, its trained part; of a folder of LoRAs, all of them."""
    edge = load_model(nano.EDGE)
    method = LoraGen.load(edge, nano.GENERATOR)
    assert trained_parameters(method, edge, None, nano.GENERATOR) == sum(
        x.size for x in jax.tree.leaves(method.generator.trained)
    )
    tuned = TunedCards.load(edge, nano.GENERATOR)
    counts = [trained_parameters(one, edge, None, nano.GENERATOR) for one in (method, tuned)]
    assert counts[0] == counts[1]
    fresh = TunedFresh.load(edge, nano.GENERATOR).given({})
    [row] = fresh.prepare(["Shout."])
    assert row.card is not None and row.card.pool is not None
    own = sum(x.size for x in jax.tree.leaves(row.card.pool.experts))
    assert trained_parameters(fresh, edge, None, nano.GENERATOR) == own < counts[0]
    for name in ("one", "two"):
        (tmp_path / name / "lora").mkdir(parents=True)
        arrays = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}
        save(tmp_path / name / "lora" / "adapter_model.safetensors", arrays)
    assert trained_parameters(Bare(), edge, None, tmp_path) == 34
    assert trained_parameters(Bare(), edge, None, None) == 0


def test_what_is_merged():
    edge, [sample, *_] = load_model(nano.EDGE), draw_world(2, 1, seed=1, families=("words",))
    ours, cached = LoraGen.load(edge, nano.GENERATOR), InContextCached.load(edge)
    assert [is_merged(method, edge, sample) for method in (Bare(), ours, cached)] == [
        *(None, True, False)
    ]


def test_a_bigger_cloud_has_more_parameters():
    run = ExperimentConfig(
        cloud=str(nano.CLOUD),
        edge=str(nano.EDGE),
        out="out",
        data=DataConfig((Source("synthetic", "synthetic"),)),
        steps=100,
    )
    assert bigger_cloud(run)
    assert not bigger_cloud(dataclasses.replace(run, cloud=run.edge, edge=run.cloud))
    assert not bigger_cloud(dataclasses.replace(run, cloud=run.edge))
