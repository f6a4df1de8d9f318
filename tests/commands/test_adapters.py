"""`lorage adapters`: a PEFT folder per prompt."""

import json
import shutil

import numpy as np
import pytest

from lorage_jax import cli, nano
from lorage_jax.commands import adapters
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward


def test_an_adapter_folder_per_prompt(tmp_path, capsys, monkeypatch):
    prompts = {
        "upper": "Write all the words in upper case.",
        "back": "Reverse the words.",
        "first": "Write the first word only.",
    }
    lines = [json.dumps({"name": name, "system": text}) for name, text in prompts.items()]
    (tmp_path / "prompts.jsonl").write_text(lines[0] + "\n")
    out, base = tmp_path / "out", ["--base-name", "/models/edge"]
    asked = ["adapters", "--generator", "nano", "--prompts", str(tmp_path / "prompts.jsonl")]
    asked += ["--out", str(out), *base, "--json", str(tmp_path / "made.json")]
    assert cli.main(asked) == 0
    assert "1 written, 0 were there" in capsys.readouterr().out
    before = (out / "upper" / "adapter_model.safetensors").stat().st_mtime_ns
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(adapters, "AT_ONCE", 1)
    assert cli.main(asked) == 0
    made = json.loads((tmp_path / "made.json").read_text())
    assert (made["written"], made["kept"]) == (["back", "first"], ["upper"])
    assert (out / "upper" / "adapter_model.safetensors").stat().st_mtime_ns == before

    generator, edge = load_generator(nano.GENERATOR), load_model(nano.EDGE)
    for name, text in prompts.items():
        config = json.loads((out / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "/models/edge"
        tokens = np.arange(3, 40)[None]
        wanted = forward(merge(edge, generator.pool, specialize(generator, text)), tokens)
        found = forward(load_adapter(out / name, edge), tokens)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_bad_list_is_one_message(tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"name": "a/b", "system": "x"}\n')
    asked = [
        "adapters",
        "--generator",
        "nano",
        "--prompts",
        str(path),
        "--out",
        str(tmp_path / "x"),
    ]
    assert cli.main(asked) == 1
    assert "the name is 'a/b'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the adapter `a`, and the arguments that wrote it but --out."""
    root = tmp_path_factory.mktemp("made")
    (root / "prompts.jsonl").write_text(json.dumps({"name": "a", "system": "Reverse the words."}))
    asked = ["adapters", "--generator", "nano", "--prompts", str(root / "prompts.jsonl")]
    assert cli.main([*asked, "--out", str(root / "out")]) == 0
    return root / "out", asked


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found["card"]["about"].update(prompt_sha256="0"), "from another prompt"),
        (lambda found: found["card"].pop("about"), "from another prompt"),
        (lambda found: found.update(generator="x"), "from another generator"),
        (lambda found: found["base"].update(fingerprint="x"), "from another edge"),
        (lambda found: found.update(generator="x", card=3), "another prompt and another generator"),
        (lambda found: found["files"].append("lost.txt"), "is not whole: lost.txt is not there"),
        (lambda found: found.update(format="lorage-merged/1"), "is no adapter"),
        (lambda found: found.update(files=None), "no usable lorage.json"),
    ],
)
def test_another_adapter_in_the_place_is_not_kept(made, tmp_path, capsys, change, says):
    out, asked = made
    assert cli.main([*asked, "--out", str(out)]) == 0
    assert "0 written, 1 were there" in capsys.readouterr().out
    shutil.copytree(out, tmp_path / "out")
    manifest = tmp_path / "out" / "a" / "lorage.json"
    found = json.loads(manifest.read_text())
    change(found)
    manifest.write_text(json.dumps(found))
    before = manifest.read_bytes()
    assert cli.main([*asked, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert says in error and str(tmp_path / "out" / "a") in error
    assert manifest.read_bytes() == before


def test_another_name_of_the_base_is_told_and_no_name_keeps_what_is_there(made, capsys):
    out, asked = made
    there = json.loads((out / "a" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert cli.main([*asked, "--out", str(out), "--base-name", "me/edge"]) == 1
    assert f"calls its base model {there!r}, not 'me/edge'" in capsys.readouterr().err
    assert cli.main([*asked, "--out", str(out), "--base-name", there]) == 0
    assert cli.main([*asked, "--out", str(out)]) == 0


def test_space_around_a_prompt_makes_no_other_adapter(made, tmp_path, capsys):
    out, asked = made
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"name": "a", "system": "Reverse the words.\n"}))
    assert cli.main([*asked[:-1], str(prompts), "--out", str(out)]) == 0
    assert "0 written, 1 were there" in capsys.readouterr().out


def test_a_file_is_no_adapter_and_an_empty_folder_is_filled(made, tmp_path, capsys):
    _, asked = made
    (tmp_path / "a").write_text("mine")
    assert cli.main([*asked, "--out", str(tmp_path)]) == 1
    assert f"{tmp_path / 'a'} is a file" in capsys.readouterr().err
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    assert cli.main([*asked, "--out", str(tmp_path)]) == 0
    assert "1 written, 0 were there" in capsys.readouterr().out
    assert (tmp_path / "a" / "adapter_model.safetensors").is_file()


def test_a_prompt_that_is_too_long_is_named_before_the_cloud_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(adapters, "specialize", lambda *_: pytest.fail("it read"))
    rows = [{"name": "a", "system": "Reverse the words."}, {"name": "b", "system": "long " * 5000}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    asked = ["adapters", "--generator", "nano", "--prompts", str(path)]
    assert cli.main([*asked, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"{path}:3 (b): the system prompt has 5" in error and "Shorten the prompt" in error
    assert not (tmp_path / "out").exists()
