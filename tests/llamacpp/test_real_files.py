"""Real GGUF files, quantised and written by others; minutes in all, so by name:

    LORAGE_TEST_DEVICES=1 pytest -m slow tests/llamacpp/test_real_files.py -s

They are looked for in LORAGE_MODELS, by default ~/.cache/lorage-models, each as FOLDER.gguf beside
the folder that transformers and the gguf package made of it in bfloat16.
"""

import dataclasses
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import lorage_jax as lg
from lorage_jax.hf.import_gguf import import_gguf
from lorage_jax.hf.source import open_model, read_model_config
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.llamacpp.export import export_gguf
from tests.llamacpp.server import LlamaServer, check_read_tokens, log_softmax

HOME = Path(os.environ.get("LORAGE_MODELS", Path.home() / ".cache" / "lorage-models"))
MODELS = ("SmolLM2-135M-Instruct", "gemma-3-270m", "Qwen2.5-Coder-0.5B-Instruct")
TEXT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Germany is"
pytestmark = pytest.mark.slow


def file_of(name):
    path = HOME / f"{name}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is not here; LORAGE_MODELS names the folder that holds the models")
    return path


@pytest.mark.parametrize("name", MODELS)
def test_tensors_and_config_are_those_of_transformers(name):
    path = file_of(name)
    config, tensors, _, _ = open_model(path)
    folder = read_model_config(path.with_suffix(""))
    assert dataclasses.replace(folder, norm_eps=config.norm_eps) == config
    assert config.norm_eps == pytest.approx(folder.norm_eps, rel=1e-6)
    expected = load_file(path.with_suffix("") / "model.safetensors")
    for tensor in tensors.names():
        found = tensors.read(tensor).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(found, expected[tensor], err_msg=tensor)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_llama_cpp(name):
    check_read_tokens(LlamaServer(file_of(name)), file_of(name), 3000)


def test_smollm2_is_the_same_model_everywhere(tmp_path):
    """Read from its file, in transformers from the imported folder, and in llama.cpp."""
    model = lg.load_model(file_of(MODELS[0]))
    import_gguf(model.source, tmp_path / "folder")
    ids = model.tokenizer(TEXT)["input_ids"]
    found = np.asarray(lg.forward(model, np.array([ids], np.int32)))[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "folder", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()[0]
    print(f"  largest difference {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=1e-3)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert again(TEXT + " 12345")["input_ids"] == model.tokenizer(TEXT + " 12345")["input_ids"]
    assert again.chat_template == model.tokenizer.chat_template
    export_gguf(model.source, tmp_path / "f32.gguf", "f32")
    server = LlamaServer(tmp_path / "f32.gguf")
    probabilities = server.log_probabilities(ids, model.config.vocab_size)
    np.testing.assert_allclose(log_softmax(found[-1]), probabilities, atol=1e-3)
    options = {"n_predict": 40, "temperature": 0, "prompt": ids, "return_tokens": True}
    [written] = generate_tokens(model, [ids], max_new_tokens=40)
    answer = server.post("/completion", cache_prompt=False, ignore_eos=True, **options)
    assert [int(token) for token in written] == answer["tokens"][: len(written)]
