"""Trained parameters of the methods, by formula, on the nano pair and TinyLlama under LLaMA3-8B."""

import math

import jax
import pytest

from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, MeshConfig, Source
from lorage_jax.hf.config import model_config
from lorage_jax.hf.presets import SHAPES
from lorage_jax.methods.autocompressor import CompressorSettings
from lorage_jax.methods.direct import DirectSettings
from lorage_jax.methods.method import get_method
from lorage_jax.methods.no_llm import NoLlmSettings
from lorage_jax.methods.prefix_tuning import PrefixTuningSettings
from lorage_jax.methods.prompt_tuning import PromptTuningSettings
from lorage_jax.nano import FOLDER
from lorage_jax.sharding import Layout, make_mesh

PAIRS = {
    "nano": lambda: {name: model_config(FOLDER / name) for name in ("cloud", "edge")},
    "tinyllama": lambda: {"cloud": SHAPES["llama3-8b"], "edge": SHAPES["tinyllama"]},
}
# Method, its settings, the number for the nano pair, and for TinyLlama under LLaMA3-8B.
COUNTS = [
    ("prompt_tuning", PromptTuningSettings(vectors=100), 12_800, 204_800),
    ("prefix_tuning", PrefixTuningSettings(slots=10), 7_680, 112_640),
    ("direct", DirectSettings(hidden=64), 1_373_184, 38_871_104),
    ("autocompressor", CompressorSettings(vectors=16), 88_064, 4_538_368),
    ("autocompressor", CompressorSettings(vectors=16, lora=False), 2_048, 32_768),
    ("no_llm", NoLlmSettings(reader="bag"), 889_912, 65_978_904),
    ("gist", CompressorSettings(vectors=16, rank=16), 88_064, 4_538_368),
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("name", "settings", "nano", "tinyllama"), COUNTS)
def test_trained_parameters(name, settings, nano, tinyllama, pair):
    data = DataConfig(
        (Source("synthetic", "synthetic", name="words"),),
        max_query_tokens=64,
        max_prompt_tokens=64,
    )
    config = ExperimentConfig(
        "cloud",
        "edge",
        "out",
        data,
        steps=100,
        method=name,
        settings=settings,
        generator=GeneratorConfig(top_k=2),
    )
    method = get_method(name)
    models = {role: one for role, one in PAIRS[pair]().items() if role in method.frozen}
    layout = Layout(make_mesh(MeshConfig()))
    leaves = method.training(config, models, layout).leaves
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(leaves))
    assert found == (nano if pair == "nano" else tinyllama)
