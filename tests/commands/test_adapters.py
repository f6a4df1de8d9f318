"""`lorage adapters`: a PEFT folder per prompt."""

import json

import numpy as np

from lorage_jax import cli, nano
from lorage_jax.commands import adapter_folders
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
    monkeypatch.setattr(adapter_folders, "AT_ONCE", 1)
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
