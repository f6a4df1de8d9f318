"""The same weights with another config.json are another model: a generator says so."""

import json
import shutil

import pytest

from lorage_jax.errors import WeightsError
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.store import check_identity, load_generator, read_values, save_generator
from lorage_jax.hf.load import load_model
from tests.tiny import make_generator

OTHER_ROPE = {"rope_type": "default", "rope_theta": 5.0}


@pytest.fixture(scope="module")
def generator(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity") / "generator"
    made = make_generator(*pair)
    save_generator(made, folder)
    assert specialize(made, []) == []
    return folder


def edited(folder, tmp_path, **fields):
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"rope_parameters": OTHER_ROPE},
            "rope_theta is 5.0; .*777.0",
        ),
        ({"rms_norm_eps": 0.5}, "norm_eps is 0.5; .*3e-05"),
        ({"sliding_window": 9}, "window is 9; .*6"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "activation is 'gelu_tanh'; .*'silu'"),
    ],
)
def test_an_edge_with_other_arithmetic(generator, pair, tmp_path, fields, says):
    values = read_values(generator)
    check_identity(pair[1], values, "edge")
    with pytest.raises(WeightsError, match=says):
        check_identity(edited(pair[1], tmp_path, **fields), values, "edge")


def test_a_cloud_with_other_arithmetic(generator, pair, tmp_path):
    other = edited(pair[0], tmp_path, rms_norm_eps=0.5)
    with pytest.raises(WeightsError, match=r"not the cloud .*\n.*norm_eps is 0.5; .*3e-05"):
        load_generator(generator, cloud=other)


def test_names_of_special_tokens_do_not_matter(generator, pair, tmp_path):
    check_identity(edited(pair[1], tmp_path, eos_token_id=[2, 7]), read_values(generator), "edge")


def test_a_generator_without_the_clouds_config_loads(generator, tmp_path):
    """As 0.1.0 wrote it."""
    shutil.copytree(generator, tmp_path / "old")
    path = tmp_path / "old" / "lorage.json"
    values = json.loads(path.read_text())
    del values["cloud"]["config"]
    path.write_text(json.dumps(values))
    load_generator(tmp_path / "old", cloud=read_cloud(generator))


def read_cloud(generator):
    return load_generator(generator).cloud.source


def test_a_fresh_card_for_an_edge_with_other_arithmetic(pair, tmp_path):
    made = make_generator(*pair)
    card = specialize(made, "Say it twice.")
    card.check(load_model(pair[1]), made.pool)
    other = load_model(edited(pair[1], tmp_path, rope_parameters=OTHER_ROPE))
    says = r"config.json is another:\n.*rope_theta is 5.0; .*777.0"
    with pytest.raises(WeightsError, match=says):
        card.check(other, made.pool)
