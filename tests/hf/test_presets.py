"""The paper's shapes are the published models', and a cut keeps what a layer is."""

import json

import jax
import pytest

from lorage_jax.errors import ConfigError
from lorage_jax.hf.config import model_config, to_hf_config
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.presets import SHAPES, shape_name
from lorage_jax.models.presets import parameter_count, random_model, with_layers

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}

# As the checkpoints on the Hugging Face hub have them.
PARAMETERS = {
    "tinyllama": 1_100_048_384,
    "qwen2-1.5b": 1_543_714_304,
    "gemma2-2b": 2_614_341_888,
    "llama3-8b": 8_030_261_248,
    "granite3-2b": 2_533_531_648,
    "olmo2-1b": 1_484_916_736,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "phi3-mini": 3_821_079_552,
}


def sliding(*pattern):
    fields = {"window": 8, "sliding": pattern}
    return family_decoder("gemma2", **SIZES, layers=len(pattern), **fields)


def test_they_have_the_published_number_of_parameters():
    assert {name: parameter_count(config) for name, config in SHAPES.items()} == PARAMETERS


@pytest.mark.parametrize("name", SHAPES)
def test_they_survive_a_config_file(tmp_path, name):
    """So that --shape and --edge-config of the same model mean the same."""
    fields = to_hf_config(SHAPES[name], "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert model_config(tmp_path) == SHAPES[name]
    assert shape_name(model_config(tmp_path)) == name


def test_a_shape_of_other_sizes_has_no_name():
    assert shape_name(with_layers(SHAPES["tinyllama"], 4)) is None


@pytest.mark.parametrize(
    ("pattern", "layers", "expected"),
    [
        ((True, False, True, False), 1, (True,)),
        ((True, False, True, False), 3, (True, False, True)),
        ((True, False, True, False), 7, (True, False) * 3 + (True,)),
        ((True,) * 3, 5, (True,) * 5),
        ((False, False, False, True), 2, (False, False)),
    ],
)
def test_other_depths_keep_the_pattern_of_sliding_layers(pattern, layers, expected):
    cut = with_layers(sliding(*pattern), layers)
    assert (cut.layers, cut.sliding) == (layers, expected)


def test_impossible_depths():
    with pytest.raises(ConfigError, match="layers is 0"):
        with_layers(SHAPES["gemma2-2b"], 0)
    with pytest.raises(ConfigError, match=r"first 4 say .* expected at most 4"):
        with_layers(sliding(False, False, False, True), 5)
    with pytest.raises(ConfigError, match="repeating pattern"):  # seen once and a half
        with_layers(sliding(True, False, True), 4)


def test_random_models_are_never_stopped_by_an_eos():
    config = family_decoder("llama", **SIZES, layers=2, eos_ids=(5,))
    model = random_model(config, "bfloat16")
    assert model.config.eos_ids == ()
    assert model.dtype == "bfloat16"
    assert sum(x.size for x in jax.tree.leaves(model.params)) == parameter_count(config)
