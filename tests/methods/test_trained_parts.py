"""Training moves every trained part of every method."""

import dataclasses

import jax
import numpy as np
import pytest

from lorage_jax.config import GeneratorConfig
from lorage_jax.methods import training
from lorage_jax.methods.autocompressor import CompressorSettings
from lorage_jax.methods.lora import LoraSettings
from lorage_jax.methods.loramoe import LoraMoeSettings
from lorage_jax.methods.method import METHODS, discover
from lorage_jax.methods.mixlora import MixLoraSettings
from lorage_jax.methods.no_llm import NoLlmSettings
from lorage_jax.methods.prompt_tuning import PromptTuningSettings
from lorage_jax.train.experiment import Trainable
from tests.methods.runs import experiment

SWITCHES = GeneratorConfig(top_k=2, rank=2, alpha=2.0, cloud_rank=2, dropout=0.0)
GUMBEL = dataclasses.replace(SWITCHES, routing="gumbel")
RUNS = {
    "lora_gen": {"generator": SWITCHES},
    "gumbel": {"method": "lora_gen", "generator": GUMBEL},
    "lora": {"settings": LoraSettings(rank=2)},
    "dora": {"method": "lora", "settings": LoraSettings("dora", rank=2)},
    "vera": {"method": "lora", "settings": LoraSettings("vera", rank=8)},
    "loramoe": {"settings": LoraMoeSettings(dropout=0.0)},
    "mixlora": {"settings": MixLoraSettings(dropout=0.0)},
    "prompt_tuning": {"settings": PromptTuningSettings(vectors=4)},
    "prefix_tuning": {},
    "direct": {"generator": SWITCHES},
    "no_llm": {"generator": SWITCHES},
    "encoder": {
        "method": "no_llm",
        "generator": SWITCHES,
        "settings": NoLlmSettings("encoder"),
    },
    "autocompressor": {"settings": CompressorSettings(vectors=4, rank=2)},
    "gist": {"settings": CompressorSettings(vectors=4, rank=2)},
}
# Trained beside other files: `lora_per_task` as `lora`, `few_case` in its own test.
ELSEWHERE = {"lora_per_task", "few_case"}


def test_every_trained_method_is_here():
    discover()
    ours = {name: one for name, one in METHODS.items() if one.__module__.startswith("lorage_jax.")}
    able = {name for name, method in ours.items() if Trainable in method.__mro__}
    assert able == {run.get("method", name) for name, run in RUNS.items()} | ELSEWHERE


@pytest.mark.parametrize(
    "name",
    [name if name == "lora_gen" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS],
)
def test_all_trained_parts_move(name, pair, tmp_path, monkeypatch):
    """After four steps: a LoRA's A moves from the second on, as its B begins at zero."""
    seen = {}

    def kept(name, found):
        seen[name] = jax.tree.map(lambda x: np.array(x, copy=True), found)

    def parts(*args):
        state = begun(*args)
        kept("begin", (state.trained, state.statistics))
        return state

    def write(method, config, models, state, folder):
        kept("end", (state.trained, state.statistics))
        return written(method, config, models, state, folder)

    begun, written = training._with_parts, training._write
    monkeypatch.setattr(training, "_with_parts", parts)
    monkeypatch.setattr(training, "_write", write)
    run = {"method": name, **RUNS[name]}
    training.train(experiment(pair, tmp_path / "run", **run), progress=False)

    still = jax.tree.map(np.array_equal, seen["begin"][0], seen["end"][0])
    unmoved = [jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(still) if x]
    assert jax.tree.leaves(still) and not unmoved
    if name == "vera":
        jax.tree.map(np.testing.assert_array_equal, seen["begin"][1], seen["end"][1])
