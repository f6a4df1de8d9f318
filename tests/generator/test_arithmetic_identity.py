"""The same weights with another config.json are another model: a generator says so."""

import dataclasses
import json
import shutil

import pytest

from lorage_jax.config.model import RopeScaling
from lorage_jax.errors import WeightsError
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.card import load_card
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.generator.store import check_identity, load_generator, read_values, save_generator
from lorage_jax.hf.arithmetic import arithmetic, different_arithmetic
from lorage_jax.hf.config import model_config
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from tests.tiny import VARIANTS, make_generator

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


CHANGED = r"config.json differs:\n.*rope_theta is 5.0; in training it was 777.0"


@pytest.fixture(scope="module")
def other(pair, tmp_path_factory):
    """The edge's weights with another rope base."""
    root = tmp_path_factory.mktemp("other")
    return load_model(edited(pair[1], root, rope_parameters=OTHER_ROPE))


def without(values, name):
    """Values as earlier versions wrote them, without a field anywhere inside."""
    if not isinstance(values, dict):
        return values
    return {key: without(value, name) for key, value in values.items() if key != name}


def rewrite(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_cards(pair, other, tmp_path):
    made, edge = make_generator(*pair), load_model(pair[1])
    card = specialize(made, "Say it twice.")
    card.save(tmp_path / "card.json")
    loaded = load_card(tmp_path / "card.json")
    for one in (card, loaded):
        one.check(edge, made.pool)
        for use in (
            lambda one=one: merge(other, made.pool, one),
            lambda one=one: forward(other, [[5, 6]], gates=one, pool=made.pool),
            lambda one=one: export_adapter(made.pool, one, other, tmp_path / "out"),
        ):
            with pytest.raises(WeightsError, match=CHANGED):
                use()
    rewrite(tmp_path / "card.json", lambda values: without(values, "edge_arithmetic"))
    load_card(tmp_path / "card.json").check(other, made.pool)  # nothing is known about it
    rewrite(tmp_path / "card.json", lambda values: {**values, "edge_arithmetic": 3})
    with pytest.raises(WeightsError, match="damaged card: edge_arithmetic is 3"):
        load_card(tmp_path / "card.json")


def test_a_card_stays_small(pair):
    card = specialize(make_generator(*pair), "Say it twice.")
    bare = dataclasses.replace(card, edge_arithmetic=None)
    assert len(json.dumps(card.to_dict())) - len(json.dumps(bare.to_dict())) < 250


def test_adapters(pair, other, tmp_path):
    made, edge = make_generator(*pair), load_model(pair[1])
    export_adapter(made.pool, specialize(made, "Say it twice."), edge, tmp_path / "adapter")
    load_adapter(tmp_path / "adapter", edge)
    with pytest.raises(WeightsError, match=f"right weights for .*adapter, but its {CHANGED}"):
        load_adapter(tmp_path / "adapter", other)
    rewrite(tmp_path / "adapter" / "lorage.json", lambda values: without(values, "arithmetic"))
    load_adapter(tmp_path / "adapter", other)


@pytest.mark.parametrize("family", VARIANTS)
def test_every_field_that_the_weights_do_not_tell(family, tiny):
    """A change of any field of a config is seen, unless it changes no logits or no weights fit."""
    config = model_config(tiny(family)[0])
    own = arithmetic(config)
    assert different_arithmetic(json.loads(json.dumps(own)), config) == []
    others = {
        "rope_theta": 3.0,
        "norm_eps": 0.25,
        "query_scale": 0.77,
        "final_softcap": 9.0,
        "attn_softcap": 9.0,
        "norm_offset": 0.5,
        "scaled_embedding": not config.scaled_embedding,
        "embedding_multiplier": 7.0,
        "residual_multiplier": 7.0,
        "logits_divisor": 7.0,
        "rope_scaling": RopeScaling("linear", 3.5),
        "activation": "relu" if config.activation != "relu" else "silu",
        "local_rope_theta": 3.0,
        "unrotated": (True, False, False),
        "window": 5,
        "sliding": tuple(not one for one in config.sliding),
    }
    for name, value in others.items():
        changes = {name: value}
        if name == "window":
            changes["sliding"] = (True,) * config.layers
        if name == "sliding":
            changes["window"] = config.window or 5
        found = different_arithmetic(own, dataclasses.replace(config, **changes))
        assert any(line.startswith(f"{name} is ") for line in found), name
