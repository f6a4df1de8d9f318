"""A generator for other weights of its models: the same parts, another identity."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lorage_jax as lg
from lorage_jax.errors import ConfigError, OutputError, WeightsError
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.files.manifest import write_manifest
from lorage_jax.generator.retarget import retarget, trained_dtype
from lorage_jax.generator.store import read_values, save_generator
from lorage_jax.generator.trees import flatten
from lorage_jax.hf.import_gguf import import_gguf
from tests.commands.world import lorage
from tests.generator.test_arithmetic_identity import edited
from tests.tiny import make_generator, random_card


@pytest.fixture(scope="module")
def home(pair, tmp_path_factory):
    """A generator's folder, and other weights of its cloud and edge."""
    root = tmp_path_factory.mktemp("retarget")
    made = make_generator(*pair)
    turns = {"cloud": made.reads.read_digest(), "edge": lg.load_model(pair[1]).template.digest()}
    made = dataclasses.replace(made, turns=turns, about={"steps": 3})
    save_generator(made, root / "old", dtype="bfloat16")
    for name, folder in zip(("cloud", "edge"), pair, strict=True):
        shutil.copytree(folder, root / name)
        for file in (root / name).glob("*.safetensors"):
            tensors = {key: 1.01 * x for key, x in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
    return root


def trained(folder, cloud=None):
    generator = lg.load_generator(folder, cloud)
    return {name: np.asarray(x) for name, x in flatten(generator.trained).items()}


def test_the_parts_stay_and_the_models_are_others(home, pair, tmp_path):
    """Also a card: it merges into the new edge, and no longer into the old one."""
    out, places = tmp_path / "new", {"edge": home / "edge", "cloud": home / "cloud"}
    made = retarget(home / "old", out, **places)
    again, old = lg.load_generator(out), read_values(home / "old")
    assert again.fingerprint == made.fingerprint != old["fingerprint"]
    assert again.edge_fingerprint == fingerprint(home / "edge") != old["edge"]["fingerprint"]
    assert again.cloud.fingerprint == fingerprint(home / "cloud")
    assert again.about["steps"] == 3 and again.about["retargeted_from"] == {
        "generator": old["fingerprint"],
        **{role: old[role]["fingerprint"] for role in ("cloud", "edge")},
    }
    assert trained_dtype(out) == trained_dtype(home / "old") == "bfloat16"
    assert again.turns == lg.load_generator(home / "old").turns
    for name, array in trained(home / "old").items():
        np.testing.assert_array_equal(array, trained(out)[name])
    card = lg.specialize(again, "Be brief.")
    lg.merge(lg.load_model(home / "edge"), again.pool, card)
    with pytest.raises(WeightsError, match="this card is for the edge model"):
        lg.merge(lg.load_model(pair[1]), again.pool, card)


def test_a_model_that_is_read_is_not_replaced(home, tmp_path):
    edge = shutil.copytree(home / "edge", tmp_path / "edge")
    write_manifest(edge, {"format": "lorage-model/1"})  # as if it had been imported
    with pytest.raises(OutputError, match=f"{edge} would be replaced, but {edge} is read"):
        retarget(home / "old", edge, edge=edge, overwrite=True)
    assert lg.load_model(edge)


@pytest.mark.parametrize("way", ["merged", "adapter", "import"])
def test_an_export_does_not_replace_its_base(home, tmp_path, way):
    generator = lg.load_generator(home / "old")
    base = shutil.copytree(generator.edge_source, tmp_path / "base")
    write_manifest(base, {"format": "lorage-model/1"})
    edge = lg.load_model(base)
    with pytest.raises(OutputError, match="would be replaced, but"):
        if way == "merged":
            lg.export_merged(edge, base, overwrite=True)
        elif way == "adapter":
            card = random_card(generator)
            lg.export_adapter(generator.pool, card, edge, base, overwrite=True)
        else:
            (base / "model.gguf").write_bytes(b"GGUF")
            write_manifest(base, {"format": "lorage-model/1"})
            import_gguf(base / "model.gguf", base, overwrite=True)
    assert lg.load_model(base)


def test_the_edge_alone(home, tmp_path):
    made = retarget(home / "old", tmp_path / "new", edge=home / "edge")
    assert made.cloud.fingerprint == read_values(home / "old")["cloud"]["fingerprint"]
    assert made.edge_fingerprint == fingerprint(home / "edge")


def test_an_edge_that_is_its_own_cloud(home, pair, tmp_path):
    save_generator(make_generator(pair[1], pair[1]), tmp_path / "own")
    made = retarget(tmp_path / "own", tmp_path / "new", edge=home / "edge")
    assert made.cloud.fingerprint == made.edge_fingerprint == fingerprint(home / "edge")
    lg.load_generator(tmp_path / "new")


def test_what_is_no_other_weights_of_the_same_model(home, pair, tmp_path):
    out = tmp_path / "new"
    with pytest.raises(ConfigError, match="give an edge, a cloud, or both"):
        retarget(home / "old", out)
    for same in ({"edge": pair[1]}, {"cloud": pair[0], "edge": pair[1]}):
        with pytest.raises(ConfigError, match="is for these weights already"):
            retarget(home / "old", out, **same)
    with pytest.raises(WeightsError, match="is not the edge this generator was trained with"):
        retarget(home / "old", out, edge=pair[0])
    other = edited(home / "edge", tmp_path, rms_norm_eps=0.5)
    with pytest.raises(WeightsError, match=r"norm_eps is 0.5"):
        retarget(home / "old", out, edge=other)
    values = json.loads((home / "old" / "lorage.json").read_text())
    for role in ("cloud", "edge"):
        changed = json.loads(json.dumps(values))
        changed[role]["turns"] = "sha256:" + "0" * 64  # of another tokenizer
        shutil.copytree(home / "old", tmp_path / role)
        (tmp_path / role / "lorage.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match="does not tokenize as in training"):
            retarget(tmp_path / role, out, **{role: home / role})
    values["fingerprint"] = "sha256:" + "1" * 64
    shutil.copytree(home / "old", tmp_path / "damaged")
    (tmp_path / "damaged" / "lorage.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"is not what lorage\.json describes"):
        retarget(tmp_path / "damaged", out, cloud=home / "cloud")
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="new"):
        retarget(home / "old", out, edge=home / "edge")


def test_the_command(home, tmp_path, capfd):
    """What refuses other weights names it; it says that nothing is known of the result."""
    args = ("--prompt", tmp_path / "prompt.txt", "--out", tmp_path / "special")
    (tmp_path / "prompt.txt").write_text("Be brief.")
    assert lorage("specialize", "--generator", home / "old", *args, "--edge", home / "edge") == 1
    assert "`lorage retarget` makes a generator" in capfd.readouterr().err
    new = tmp_path / "new"
    result = tmp_path / "result.json"
    command = ("retarget", home / "old", "--edge", home / "edge", "--out", new, "--json", result)
    assert lorage(*command) == 0
    assert "It was not trained with these weights." in capfd.readouterr().out
    assert json.loads(result.read_text())["edge"] == fingerprint(home / "edge")
    assert lorage("specialize", "--generator", new, *args) == 0
