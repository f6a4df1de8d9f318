"""Damaged folders and files, interruptions, full disks: one message each, nothing lost."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.generator import deploy
from tests.commands.world import WEIGHTS, lorage

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def damaged_model(folder, how):
    config, weights = folder / "config.json", folder / WEIGHTS
    if isinstance(how, dict):
        config.write_text(json.dumps(json.loads(config.read_text()) | how))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "garbage":
        weights.write_bytes(b"\xff" * 100)
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "deep":
        config.write_text("[" * 100_000)
    elif how in (WEIGHTS, "config.json"):
        (folder / how).unlink()
    else:
        tensors = load_file(weights)
        tensors["model.norm.weight"] = np.zeros(7 if how == "shape" else 32, np.int32)
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("config.json", r"^lorage: \S+ has no config.json.*\n$"),
        (WEIGHTS, "no model.safetensors"),
        ("cut", "truncated"),
        ("garbage", "corrupt"),
        ("shape", r"model\.norm\.weight has shape \(7,\); config says \(32,\)"),
        ("integers", "is I32; expected floating"),
        ("no tokenizer", "has no tokenizer files"),
        ("deep", "cannot be read as JSON"),
        ({"model_type": "mamba"}, r"'mamba'.*supported are .*\bllama\b"),
        ({"model_type": ["llama"]}, r"\['llama'\].*supported are .*\bllama\b"),
        ({"num_hidden_layers": 5}, r"layers\.4\.\S+ is missing"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"num_attention_heads": "4"}, "num_attention_heads.*expected int"),
        ({"num_key_value_heads": 0}, "kv_heads is 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "'x'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "relu6"}, "relu6"),
    ],
)
def test_bad_models(world, refuse, tmp_path, how, says):
    shutil.copytree(world.root / "cloud", tmp_path / "model")
    damaged_model(tmp_path / "model", how)
    refuse("generate", "--model", tmp_path / "model", "--input", "x", says=says)


def test_weights_that_are_not_finite_are_no_result(specialize, world, tmp_path, refuse):
    """A folder of NaN, with a parity of NaN, could be written, but is not a result."""
    broken, edge = tmp_path / "generator", tmp_path / "edge"
    shutil.copytree(world.root / "edge", edge)
    tensors = load_file(edge / WEIGHTS)
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, edge / WEIGHTS)
    shutil.copytree(world.generator, broken)
    values = json.loads((broken / "lorage.json").read_text())
    values["edge"]["fingerprint"] = fingerprint(edge)
    (broken / "lorage.json").write_text(json.dumps(values))
    refuse(*specialize(generator=broken, edge=edge), says="not finite")


def change(values, name, value):
    """Sets `a.b` of nested dicts; None deletes it."""
    *path, last = name.split(".")
    for key in path:
        values = values[key]
    if value is None:
        del values[last]
    else:
        values[last] = value


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("format", "lorage-generator/9", "lorage-generator/9"),
        ("fingerprint", "sha256:00", "the folder was changed"),
        ("fingerprint", None, "fingerprint is missing"),
        ("generator", "x", "generator is"),
        ("generator.experts", "8", "experts is '8'"),
        ("generator.strange", 1, "no field strange"),
        ("generator.rank", 5, r"pool\.down\.a has shape"),
        ("templates", 99, "templates 99"),
        ("dtype", "int4", "int4"),
        ("cloud", None, "cloud is missing"),
        ("cloud.path", 3, "cloud.path is 3"),
        ("edge.config", None, "edge.config is missing"),
        ("edge.config.sliding", 3, "sliding is 3"),
        ("about", [1], "about is"),
    ],
)
def test_a_damaged_generator(world, specialize, refuse, tmp_path, name, value, says):
    folder = tmp_path / "generator"
    shutil.copytree(world.generator, folder)
    values = json.loads((folder / "lorage.json").read_text())
    change(values, name, value)
    (folder / "lorage.json").write_text(json.dumps(values))
    refuse(*specialize(generator=folder), says=says)


@pytest.mark.parametrize("kind", ["cut", "flipped", "missing", "json", "deep"])
def test_damaged_files_of_a_generator(world, specialize, refuse, tmp_path, kind):
    folder = tmp_path / "generator"
    shutil.copytree(world.generator, folder)
    tensors = folder / "generator.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-3] ^= 255
    tensors.write_bytes(data[:3000] if kind == "cut" else data)
    if kind == "missing":
        tensors.unlink()
    if kind in ("json", "deep"):
        (folder / "lorage.json").write_text("{" if kind == "json" else "[" * 100_000)
    word = {"cut": "truncated", "flipped": "was changed", "missing": "missing"}.get(kind, "be read")
    refuse(*specialize(generator=folder), says=word)
    if kind != "flipped":
        refuse(
            "inspect", folder, says=word if kind != "missing" else "does not exist in|not a card"
        )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("format", "x", "found 'x'"),
        ("gates", None, "gates"),
        ("gates", [[[0, 1.0]]], "1 rows of gates for 3 layers"),
        ("layers", 10**12, "rows of gates"),
        ("experts", 10**12, "experts"),
        ("experts", 1, "expert"),
        ("about", "x", "about is 'x'"),
        ("gates", [[[0, float("nan")]]] * 3, "not finite"),
        ("gates", [[[0.5, 1.0]]] * 3, "damaged"),
    ],
)
def test_damaged_cards(world, refuse, tmp_path, name, value, says):
    values = json.loads((world.special / "card.json").read_text())
    change(values, name, value)
    card = tmp_path / "card.json"
    card.write_text(json.dumps(values))
    refuse("inspect", card, "--png", tmp_path / "gates.png", says=says)


def test_what_cannot_be_inspected(world, refuse, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "taken.png").write_text("mine")
    refuse("inspect", world.root / "prompt.txt", says="is not a card: it is not JSON. Expected")
    refuse("inspect", world.root / "train.json", says="found None")
    refuse("inspect", world.root / "cloud" / WEIGHTS, says="is not a card")
    refuse("inspect", world.root / "cloud", says="contains no card")
    refuse("inspect", world.root / "nowhere", says="does not exist")
    refuse("inspect", tmp_path / "deep.json", says="is not a card")
    refuse("inspect", world.special, "--png", tmp_path / "g.jpg", says=r"g\.jpg; expected .*\.png")
    refuse("inspect", world.special, "--png", tmp_path / "taken.png", says=r"taken\.png exists")
    refuse("inspect", world.generator, "--png", tmp_path / "new.png", says="--png needs a card")


# Interruptions and the environment


def fails(error):
    def export(*args, **options):
        raise error

    return export


def test_interruptions_leave_nothing(specialize, refuse, monkeypatch):
    place = (deploy, "export_merged")
    monkeypatch.setattr(*place, fails(KeyboardInterrupt()))
    refuse(*specialize(), says="interrupted", code=130)
    monkeypatch.setattr(*place, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    refuse(*specialize(), says="interrupted", code=130)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_overwrite_keeps_the_old_folder(world, specialize, refuse, tmp_path):
    shutil.copytree(world.special, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "export_merged", fails(KeyboardInterrupt()))
        refuse(*specialize(overwrite=True), says="interrupted", code=130)


def test_memory_disk_and_defects(specialize, refuse, monkeypatch, capfd):
    place = (deploy, "export_merged")
    for error, says in (
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory.*9 TiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "not enough memory"),
        (OSError(28, "No space left on device"), "Cannot write .*No space left.*Free some space"),
        (OSError(5, "Input/output error", "/elsewhere/file"), "/elsewhere/file: Input/output"),
    ):
        monkeypatch.setattr(*place, fails(error))
        refuse(*specialize(), says=says)
    monkeypatch.setattr(*place, fails(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # a bug of ours is not reported as the user's mistake
        lorage(*specialize())


def test_a_full_disk(specialize, refuse, tiny_disk):
    refuse(*specialize(out=tiny_disk / "out"), says="Cannot write .*No space left")
    assert list(tiny_disk.iterdir()) == []


def test_a_disk_that_fills_up_in_training(world, tiny_disk, capfd, caplog):
    """orbax alone would report it in a thousand lines."""
    assert lorage("train", world.root / "exp.py", "--out", tiny_disk / "run") == 1
    error = capfd.readouterr().err
    last = error.splitlines()[-1]
    assert re.search("^lorage: .*could not be written .*No space left.*Check the disk", last)
    assert all(line.startswith("step ") for line in error.splitlines()[:-1]), error
    assert "orbax" not in caplog.text  # output that pytest captured
