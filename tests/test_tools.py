"""Scripts in tools/ that users are told to run."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from lorage_jax import nano
from lorage_jax.errors import DataError
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def adapters():
    spec = importlib.util.spec_from_file_location("adapters", TOOLS / "adapters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_adapter_folder_per_prompt(adapters, tmp_path):
    generator, edge = load_generator(nano.GENERATOR), load_model(nano.EDGE)
    prompts = {"upper": "Write all the words in upper case.", "back": "Reverse the words."}
    lines = [json.dumps({"name": name, "system": text}) for name, text in prompts.items()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n\n")
    read = adapters.read_prompts(tmp_path / "prompts.jsonl")
    assert read == prompts
    given = (generator, edge, read, tmp_path / "out", "/models/edge")
    assert adapters.write_adapters(*given) == ["upper", "back"]
    assert adapters.write_adapters(*given) == []  # what is there stays
    for name, text in prompts.items():
        config = json.loads((tmp_path / "out" / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "/models/edge"
        tokens = np.arange(3, 40)[None]
        wanted = forward(merge(edge, generator.pool, specialize(generator, text)), tokens)
        found = forward(load_adapter(tmp_path / "out" / name, edge), tokens)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 2: expected"),
        ('{"name": "a"}', "line 2: expected"),
        ('{"name": "../a", "system": "x"}', "letters, digits"),
        ('{"name": "b", "system": " "}', "is empty"),
        ('{"name": "a", "system": "y"}', "was there before"),
    ],
)
def test_a_bad_line_is_named(adapters, tmp_path, line, words):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"name": "a", "system": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        adapters.read_prompts(path)
