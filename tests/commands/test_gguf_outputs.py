"""GGUF files of `lorage specialize` and `lorage export`."""

import json

import gguf
import pytest

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.generator import deploy as deploying
from tests.commands.world import (
    WEIGHTS,
    lorage,
)


def test_specialize_for_llama_cpp(tmp_path, capfd, monkeypatch):
    (tmp_path / "prompt.txt").write_text("Reverse the words.")
    args = ("specialize", "--generator", "nano", "--prompt", tmp_path / "prompt.txt")
    out = tmp_path / "out"
    assert lorage(*args, "--out", out, "--save", "gguf,lora-gguf", "--gguf-type", "q8_0") == 0
    kinds = {}
    for name in ("merged.gguf", "lora.gguf"):
        reader = gguf.GGUFReader(out / name)
        fields = ("general.type", "general.architecture")
        kinds[name] = tuple(reader.fields[field].contents() for field in fields)
    assert kinds == {"merged.gguf": ("model", "qwen2"), "lora.gguf": ("adapter", "qwen2")}
    assert gguf.GGUFReader(out / "merged.gguf").fields["general.file_type"].contents() == 7
    card = json.loads(reader.fields["lorage.card"].contents())
    assert card["generator"] == lg.load_generator(nano.GENERATOR).fingerprint
    assert {path.name for path in out.iterdir()} == {*kinds, "report.json", "lorage.json"}
    assert lorage(*args, "--out", out, "--save", "gguf", "--overwrite") == 0  # all of it is ours
    assert "loses" not in capfd.readouterr().err
    monkeypatch.setattr(deploying, "LOST", 1e-9)
    assert lorage(*args, "--out", tmp_path / "strict", "--save", "gguf", "--strict") == 1
    assert "the cast to bfloat16 loses" in capfd.readouterr().err
    assert not (tmp_path / "strict").exists()


def test_what_a_gguf_file_loses_is_reported(tmp_path, capfd, refuse, monkeypatch):
    """By the type of its matrices; more than a tenth of the effect in words, or as an error."""
    (tmp_path / "prompt.txt").write_text("Reverse the words.")
    lost = {}

    def asked(kind, *more):
        out = tmp_path / kind
        given = ("specialize", "--generator", "nano", "--prompt", tmp_path / "prompt.txt")
        return *given, "--out", out, "--save", "gguf", "--gguf-type", kind, "--overwrite", *more

    for kind in ("f32", "q8_0", "q4_0"):
        assert lorage(*asked(kind)) == 0
        merge = json.loads((tmp_path / kind / "report.json").read_text())["merge"]
        lost[kind] = merge["kl_lost_gguf"]
        assert "lost in the GGUF file" in capfd.readouterr().out
    assert lost["f32"] == pytest.approx(merge["kl_lost"], rel=1e-3)  # that of the cast before it
    assert lost["f32"] < lost["q8_0"] < lost["q4_0"] < merge["kl_effect"]

    share = 0.5 * lost["q4_0"] / merge["kl_effect"]
    monkeypatch.setattr(deploying, "LOST", share)
    assert merge["kl_lost"] < share * merge["kl_effect"]
    assert lorage(*asked("q4_0")) == 0
    assert "the GGUF file in q4_0 loses" in capfd.readouterr().err
    (tmp_path / "q4_0" / "merged.gguf").unlink()
    says = r"the GGUF file in q4_0 loses .* --gguf-type .* Nothing was written \(--strict\)"
    refuse(*asked("q4_0", "--strict"), says=says)
    assert not (tmp_path / "q4_0" / "merged.gguf").exists()  # the older result stays as it was


def test_export_writes_a_gguf_file(tmp_path, refuse):
    out, result = tmp_path / "x.gguf", tmp_path / "x.json"
    args = ("export", nano.EDGE, "--gguf", out)
    assert lorage(*args, "--type", "q8_0", "--json", result) == 0
    figures = json.loads(result.read_text())
    assert figures["bytes"] == out.stat().st_size < 0.7 * (nano.EDGE / WEIGHTS).stat().st_size
    assert gguf.GGUFReader(out).get_field("general.file_type").contents() == 7
    refuse(*args, says="exists. Choose another name, or pass --overwrite")
    onto = ("export", nano.EDGE, "--gguf", tmp_path / "onto.gguf", "--base", out)
    assert lorage(*onto, "--type", "f32") == 0
    kinds = {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(tmp_path / "onto.gguf").tensors
    }
    assert kinds["blk.0.ffn_up.weight"] == "F32" and kinds["blk.0.attn_q.weight"] == "Q8_0"
    refuse(*onto, "--overwrite", "--pre", "gpt-2", says="--base cannot be combined")
    refuse("export", tmp_path / "none", "--gguf", tmp_path / "y.gguf", says="is not a folder")


def test_an_export_of_few_bits_says_that_its_loss_is_unknown(tmp_path, capfd):
    """Of a specialised folder alone, without its base."""
    (tmp_path / "prompt.txt").write_text("Reverse the words.")
    given = ("--generator", "nano", "--prompt", tmp_path / "prompt.txt", "--save", "merged")
    assert lorage("specialize", *given, "--out", tmp_path / "out") == 0
    merged = tmp_path / "out" / "merged"
    for name, source, kind, warned in (
        ("a", merged, "q4_0", True),
        ("b", merged, "q8_0", False),
        ("c", nano.EDGE, "q4_0", False),
    ):
        assert lorage("export", source, "--gguf", tmp_path / f"{name}.gguf", "--type", kind) == 0
        said = "q4_0 may lose part of the update" in capfd.readouterr().err
        assert said == warned, name
