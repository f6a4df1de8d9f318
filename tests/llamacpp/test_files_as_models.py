"""GGUF files wherever a model's folder is taken: loading, cards, generators, exports, commands."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lorage_jax as lg
from lorage_jax import cli, nano
from lorage_jax.config import MeshConfig
from lorage_jax.errors import WeightsError
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.generator.store import save_generator
from lorage_jax.hf.config import model_config
from lorage_jax.hf.gguf import gguf_tokenizer
from lorage_jax.hf.import_gguf import import_gguf
from lorage_jax.hf.source import read_model_config
from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.sharding import Layout, make_mesh
from tests.llamacpp.models import rewrite, tiny_folder
from tests.tiny import make_generator

PROMPT = "Reverse the words. Put a comma between words."


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """The nano edge's file, in f32."""
    path = tmp_path_factory.mktemp("edge") / "edge.gguf"
    export_gguf(nano.EDGE, path, "f32")
    return path


def test_a_model_of_a_file_is_that_of_its_folder(edge):
    folder, model = lg.load_model(nano.EDGE), lg.load_model(edge)
    tokens = np.random.default_rng(0).integers(3, 300, (2, 24)).astype(np.int32)
    expected = np.asarray(lg.forward(folder, tokens))
    np.testing.assert_array_equal(np.asarray(lg.forward(model, tokens)), expected)
    assert lg.chat(model, "city king frog star") == lg.chat(folder, "city king frog star")
    assert model.fingerprint == fingerprint(edge) != folder.fingerprint
    assert str(lg.load_model(edge, "bfloat16").dtype) == "bfloat16"


def test_a_sharded_file_has_the_same_weights(tmp_path):
    """Each device reads its own part, of permuted heads and of quantised blocks, too."""
    tiny_folder(tmp_path / "edge", "llama", hidden_size=64, intermediate_size=96)
    export_gguf(tmp_path / "edge", tmp_path / "edge.gguf", "q8_0")
    whole = lg.load_model(tmp_path / "edge.gguf")
    parts = lg.load_model(tmp_path / "edge.gguf", layout=Layout(make_mesh(MeshConfig(2, 2, 2))))
    assert len(parts.params["layers"]["q"].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)


def test_a_specialised_file_answers_in_its_turns(edge, tmp_path, capsys):
    """The chat template of the trained turns is in the file, and is used."""
    generator, folder = lg.load_generator(nano.GENERATOR), lg.load_model(nano.EDGE)
    card = lg.specialize(generator, PROMPT)
    special = lg.merge(folder, generator.pool, card)
    export_gguf(special, tmp_path / "special.gguf", "f32")
    expected = lg.chat(special, "city king frog star").strip()
    found = lg.chat(lg.load_model(tmp_path / "special.gguf"), "city king frog star")
    assert found.strip() == expected
    path = str(tmp_path / "special.gguf")
    assert cli.main(["generate", "--model", path, "--input", "city king frog star"]) == 0
    assert capsys.readouterr().out.strip() == expected
    with pytest.raises(WeightsError, match=r"GGUF file and the Hugging Face folder .* two models"):
        card.check(lg.load_model(edge), generator.pool)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(PROMPT)
    arguments = ["--edge", str(edge), "--prompt", str(prompt), "--out", str(tmp_path / "out")]
    assert cli.main(["specialize", "--generator", "nano", *arguments]) == 1
    assert "are two models" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_generator_of_files(edge, tmp_path):
    """A generator whose cloud and edge are GGUF files is found again, deployed and exported."""
    cloud = tmp_path / "cloud.gguf"
    export_gguf(nano.FOLDER / "cloud", cloud, "q8_0")
    made = make_generator(cloud, edge)
    save_generator(made, tmp_path / "generator")
    card = lg.specialize(lg.load_generator(tmp_path / "generator"), "Be brief.")
    model = lg.load_model(edge)
    special = lg.merge(model, made.pool, card)
    lg.export_merged(special, tmp_path / "merged")
    found = lg.load_model(tmp_path / "merged")
    assert found.config == dataclasses.replace(model.config, eos_ids=found.config.eos_ids)
    for name in ("gate", "up", "down", "q"):
        expected = np.asarray(special.params["layers"][name])
        np.testing.assert_array_equal(np.asarray(found.params["layers"][name]), expected)
        moved = not np.array_equal(expected, np.asarray(model.params["layers"][name]))
        assert moved == (name != "q")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Be brief.")
    words = ["--generator", str(tmp_path / "generator"), "--prompt", str(prompt)]
    words += ["--out", str(tmp_path / "special"), "--save", "card,adapter,merged,gguf"]
    assert cli.main(["specialize", *words]) == 0
    assert np.array_equal(lg.load_card(tmp_path / "special").gates, card.gates)
    other = make_generator(nano.FOLDER / "cloud", nano.EDGE)
    with pytest.raises(WeightsError, match="this card is for the edge model"):
        lg.specialize(other, "Be brief.").check(model, other.pool)


def test_a_merged_folder_over_a_quantised_file_keeps_the_update(tmp_path, caplog):
    """One projection is f16 in the file, as blocks do not fit its rows: its update is kept, too."""
    tiny_folder(tmp_path / "edge", "llama", hidden_size=64, intermediate_size=80)
    export_gguf(tmp_path / "edge", tmp_path / "edge.gguf", "q8_0")
    made = make_generator(nano.FOLDER / "cloud", tmp_path / "edge.gguf", strength=1e-4)
    model = lg.load_model(tmp_path / "edge.gguf")
    special = lg.merge(model, made.pool, lg.specialize(made, "Be brief."))
    lg.export_merged(special, tmp_path / "merged")
    assert "rounding" not in caplog.text
    found = lg.load_model(tmp_path / "merged")
    for name in ("gate", "down"):
        expected = np.asarray(special.params["layers"][name])
        np.testing.assert_array_equal(np.asarray(found.params["layers"][name]), expected)
        assert not np.array_equal(expected, np.asarray(model.params["layers"][name]))


def test_import_from_the_command_line(edge, tmp_path, capsys):
    out = tmp_path / "edge"
    assert cli.main(["import", str(edge), "--out", str(out), "--dtype", "bfloat16"]) == 0
    assert f"Written: {out}" in capsys.readouterr().out
    assert model_config(out) == read_model_config(edge)
    assert {str(value.dtype) for value in load_file(out / "model.safetensors").values()} == {
        "bfloat16"
    }
    assert cli.main(["import", str(edge), "--out", str(out)]) == 1  # it exists
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["import", str(edge), "--out", str(out), "--overwrite"]) == 0
    assert cli.main(["import", str(nano.EDGE), "--out", str(tmp_path / "x")]) == 1
    assert "is not a GGUF file" in capsys.readouterr().err


def test_a_way_to_split_can_be_named(edge, tmp_path):
    rewrite(edge, tmp_path / "x.gguf", {"tokenizer.ggml.pre": "new"})
    with pytest.raises(WeightsError, match="--pre NAME"):
        lg.load_model(tmp_path / "x.gguf")
    import_gguf(tmp_path / "x.gguf", tmp_path / "x", pre="qwen2")
    folder = lg.load_model(tmp_path / "x")
    assert folder.tokenizer(PROMPT) == gguf_tokenizer(edge)(PROMPT)
    with pytest.raises(WeightsError, match="splits texts otherwise"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "y", pre="smollm")  # a qwen2 has its own way
    assert not (tmp_path / "y").exists()
