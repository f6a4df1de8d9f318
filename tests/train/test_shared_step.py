"""Runs of one process that differ in nothing that their step depends on share its program."""

import dataclasses

import pytest

from lorage_jax.hf.family import family_decoder
from lorage_jax.methods.lora import Lora
from lorage_jax.methods.training import train
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train import experiment as steps

EDGE = family_decoder("llama", vocab_size=64, width=32, layers=2, heads=2, kv_heads=2, ffn_width=48)


def test_another_seed_and_folder_compile_nothing(experiment, tmp_path):
    first = experiment(steps=3, save_every=3, optimizer={"learning_rate": 0.0017})
    one = train(first, progress=False)
    other = dataclasses.replace(first, out=str(tmp_path / "other"), seed=1)
    again = train(other, progress=False)
    assert (one.programs, again.programs) == (1, 0)
    assert again.losses[0] != one.losses[0]
    steps._shared_step.cache_clear()
    alone = train(dataclasses.replace(other, out=str(tmp_path / "alone")), progress=False)
    assert alone.losses == again.losses and alone.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    "same", [{"out": "elsewhere"}, {"seed": 5}, {"keep": 9}, {"data": "sources"}]
)
def test_a_step_does_not_depend_on(experiment, same):
    first = experiment()
    if "data" in same:
        [source] = first.data.sources
        sources = (dataclasses.replace(source, weight=2.0),)
        same = {"data": dataclasses.replace(first.data, sources=sources)}
    assert steps._settings(dataclasses.replace(first, **same)) == steps._settings(first)


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 7},
        {"remat": "full"},
        {"generator": {"top_k": 2}},
        {"data": {"prompt_chunks": 2}},
        {"optimizer": {"learning_rate": 0.002}},
    ],
)
def test_a_step_depends_on(experiment, other):
    assert steps._settings(experiment(**other)) != steps._settings(experiment())


def test_methods_and_models_have_steps_of_their_own(experiment):
    """Even where all arrays have the same shapes."""
    config, layout = experiment(method="lora"), Layout(make_mesh(experiment().mesh))

    def step(method, edge):
        return steps.build_step(method, config, {"edge": edge}, layout).step

    assert step(Lora, EDGE) is step(Lora, EDGE)
    assert step(Lora, dataclasses.replace(EDGE, norm_eps=1e-3)) is not step(Lora, EDGE)

    class Other(Lora):
        pass

    assert step(Other, EDGE) is not step(Lora, EDGE)

    class Reading(Lora):
        @classmethod
        def training(cls, *given):
            return dataclasses.replace(super().training(*given), shared=False)

    assert step(Reading, EDGE) is not step(Reading, EDGE)
