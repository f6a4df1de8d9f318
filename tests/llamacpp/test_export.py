"""GGUF files, read by the real llama.cpp."""

import shutil
import sys
from functools import partial

import gguf
import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.data.templates import question
from lorage_jax.errors import ConfigError, OutputError, WeightsError
from lorage_jax.gguf import tokenizer as vocabularies
from lorage_jax.gguf.architectures import ARCHITECTURES
from lorage_jax.gguf.tokenizer import read_vocabulary
from lorage_jax.hf.tokenizer import load_tokenizer
from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.llamacpp.file import TYPES
from lorage_jax.llamacpp.onto import export_onto_gguf
from tests.llamacpp.models import COMPUTED, split_as, splitting, texts, tiny_folder
from tests.llamacpp.server import LlamaServer, check_read_tokens, log_softmax
from tests.tiny import VARIANTS, VOCAB, WINDOW, make_tiny, torch_logits

TOLERANCE = dict.fromkeys(("gemma", "gemma2", "gemma3_text"), 3e-2)  # its GELU has 16 bits


@pytest.mark.parametrize("variant", COMPUTED)
def test_logits_are_those_of_transformers(tmp_path, variant):
    """The last token of a text sees all of it; random weights tell every mistake."""
    family, fields = VARIANTS[variant]
    more, length = COMPUTED[variant]
    torch_model = tiny_folder(tmp_path / "model", family, **(fields | more))
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    tokens = np.random.default_rng(0).integers(3, VOCAB - 5, length)
    found = LlamaServer(tmp_path / "model.gguf").log_probabilities(tokens, VOCAB)
    expected = log_softmax(torch_logits(torch_model, tokens[None])[0, -1])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE.get(family, 2e-4))


def test_a_granite_with_biases_and_scaled_rope(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    fields = {"attention_bias": True, "mlp_bias": True, "rope_parameters": rope}
    torch_model = tiny_folder(tmp_path / "model", "granite", **fields)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    tokens = np.random.default_rng(0).integers(3, VOCAB - 5, 40)
    found = LlamaServer(tmp_path / "model.gguf").log_probabilities(tokens, VOCAB)
    expected = torch_logits(torch_model, tokens[None])[0, -1]
    np.testing.assert_allclose(found, log_softmax(expected), atol=2e-4)
    read = lg.load_model(tmp_path / "model.gguf", "float32")
    np.testing.assert_allclose(lg.forward(read, tokens[None])[0, -1], expected, atol=2e-4)


def test_every_family_of_the_table_is_compared():
    assert {VARIANTS[name][0] for name in COMPUTED} == set(ARCHITECTURES)


def check_tokens(tokenizer, folder):
    """The real llama.cpp splits texts as `tokenizer`, saved to a new folder with a tiny model."""
    make_tiny("llama", folder, tokenizer=False, vocab_size=len(tokenizer), num_hidden_layers=1)
    tokenizer.save_pretrained(str(folder))
    model = lg.load_model(folder).replace(answers=True)  # so that its turns are in the file
    export_gguf(model, folder / "model.gguf", "f32")
    server = LlamaServer(folder / "model.gguf")
    if "Metaspace" in tokenizer.backend_tokenizer.to_str():  # the difference in the docstring
        check = [text.lstrip(" ") for text in texts()]
    else:
        check = texts()
    for text in check:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert server.tokens(text) == ids, text
    check_read_tokens(server, folder / "model.gguf")
    turns = model.template
    begun = server.post("/tokenize", content="It is 12.", add_special=True)["tokens"]
    assert begun == turns.tokens("It is 12.")
    for system in ("Be brief.", None):
        messages = question("What is 12?", system)
        prompt = server.post("/apply-template", messages=messages)["prompt"]
        options = {"add_special": True, "parse_special": True}
        assert server.post("/tokenize", content=prompt, **options)["tokens"] == turns.ids(messages)


@pytest.mark.parametrize("role", ["edge", "cloud"])
def test_tokens_of_the_nano_pair(tmp_path, role):
    check_tokens(load_tokenizer(nano.FOLDER / role), tmp_path / "model")


@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/llama2"])
def test_tokens_of_sentencepiece(tmp_path, shared, name):
    check_tokens(load_tokenizer(shared / name), tmp_path / "model")


@pytest.mark.parametrize("number", range(len(vocabularies.SPLITS)))
def test_tokens_of_every_known_split(tmp_path, number):
    split, names = list(vocabularies.SPLITS.items())[number]
    tokenizer = split_as(split)
    assert read_vocabulary(tokenizer, 300).pre == names[0]
    check_tokens(tokenizer, tmp_path / "model")


def test_an_unknown_split_is_refused_unless_it_is_named(tmp_path):
    split = pre_tokenizers.Split(Regex("x+"), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = splitting(pre_tokenizers.Sequence([split, plain]))
    with pytest.raises(WeightsError, match="--pre NAME"):
        read_vocabulary(tokenizer, 300)
    assert read_vocabulary(tokenizer, 300, "gpt-2").pre == "gpt-2"
    with pytest.raises(WeightsError, match="vocabulary has 200"):
        read_vocabulary(tokenizer, 200, "gpt-2")
    with pytest.raises(ConfigError, match=r"not known as .*; did you mean qwen35, qwen2"):
        read_vocabulary(tokenizer, 300, "qwen3")
    with pytest.raises(ConfigError, match=r"not known as .*; expected one of gpt-2, phi-2"):
        read_vocabulary(tokenizer, 300, "")


def test_a_name_that_only_llama_cpp_knows_is_taken_with_a_warning(caplog):
    split = pre_tokenizers.Split(Regex("x+"), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = splitting(pre_tokenizers.Sequence([split, plain]))
    assert read_vocabulary(tokenizer, 300, "tekken").pre == "tekken"
    assert "does not know how llama.cpp's tekken splits texts" in caplog.text


def test_a_recognised_split_keeps_its_name(tmp_path):
    tokenizer = split_as(vocabularies.NAMES["qwen2"])
    assert read_vocabulary(tokenizer, 300, "stablelm2").pre == "stablelm2"  # splits as qwen2 does
    for name in ("gpt-2", "tekken"):
        with pytest.raises(ConfigError, match=r"as llama\.cpp's qwen2\. Leave --pre out"):
            read_vocabulary(tokenizer, 300, name)
    with pytest.raises(ConfigError, match=r"not known as .*; did you mean qwen2\?"):
        read_vocabulary(tokenizer, 300, "qwen3")


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("opt", {}, "family opt cannot be written as GGUF; expected one of llama, "),
        ("gemma2", {"tie_word_embeddings": False}, "a head that differs from the embeddings"),
        ("gemma3_text", {}, "queries scaled by 0.22.*it takes all but every 6th"),
        ("qwen2", {}, "4 heads of 16 channels in a width of 48"),
        ("qwen3", {"attention_bias": True}, "biases of out, qkv"),
        ("smollm3", {}, "layers without rope; it takes every 4th"),
        ("qwen3", VARIANTS["qwen3-yarn"][1], "rope scaled by yarn"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(tmp_path, family, fields, says):
    tiny_folder(tmp_path / "model", family, **fields)
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("window", "context"), [(WINDOW, WINDOW), (None, 256)])
def test_a_window_that_llama_cpp_lacks_limits_the_context(tmp_path, window, context):
    tiny_folder(tmp_path / "model", "mistral", sliding_window=window)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert stored(tmp_path / "model.gguf")[1]["llama.context_length"] == context


def stored(path):
    """Tensors of a file by name, and its keys with their values."""
    reader = gguf.GGUFReader(path)
    return (
        {tensor.name: tensor for tensor in reader.tensors},
        {name: field.contents() for name, field in reader.fields.items()},
    )


@pytest.mark.parametrize("kind", TYPES)
def test_types(tmp_path, kind):
    """Matrices have the type that was asked for, with its error; vectors stay exact."""
    fields = {"hidden_size": 64, "intermediate_size": 80}
    torch_model = tiny_folder(tmp_path / "model", "llama", **fields)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", kind)
    tensors, keys = stored(tmp_path / "model.gguf")
    assert keys["general.file_type"] == gguf.LlamaFileType[TYPES[kind]]
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert types["blk.0.ffn_up.weight"] == types["blk.1.attn_v.weight"] == kind.upper()
    assert types["token_embd.weight"] == ("Q8_0" if kind[1] in "45" else kind.upper())
    # 80 is no multiple of a block of 32
    assert types["blk.0.ffn_down.weight"] == ("F16" if kind.startswith("q") else kind.upper())
    assert types["blk.0.ffn_norm.weight"] == "F32"
    up = tensors["blk.2.ffn_up.weight"]
    found = gguf.quants.dequantize(up.data, up.tensor_type)
    exact = torch_model.model.layers[2].mlp.up_proj.weight.detach().numpy()
    error = np.abs(found - exact).max() / np.abs(exact).max()
    bits = {"f32": 24, "f16": 11, "bf16": 8}.get(kind) or int(kind[1])
    assert error <= 2.0**-bits * 1.1
    if kind != "f32":
        assert error > 0


def test_the_file_of_a_model_in_memory_is_that_of_its_folder(tmp_path):
    export_gguf(nano.EDGE, tmp_path / "folder.gguf", "bf16")
    lg.export_gguf(lg.load_model(nano.EDGE), tmp_path / "memory.gguf", "bf16")
    assert (tmp_path / "folder.gguf").read_bytes() == (tmp_path / "memory.gguf").read_bytes()


def test_a_specialised_model_answers_as_in_lorage(tmp_path):
    """The trained turns are in the file: an OpenAI client needs to know nothing of them."""
    edge, generator = lg.load_model(nano.EDGE), lg.load_generator(nano.GENERATOR)
    card = lg.specialize(generator, "Reverse the words. Put a comma between words.")
    special = lg.merge(edge, generator.pool, card)
    lg.export_gguf(special, tmp_path / "special.gguf", "f32")
    server = LlamaServer(tmp_path / "special.gguf")
    asked = ["city king frog star", "bird table stone"]
    for text in asked:
        messages = question(text)
        rendered = server.post("/apply-template", messages=messages)["prompt"]
        assert rendered == special.template.text(messages)
        answer = server.post("/v1/chat/completions", messages=messages, temperature=0)
        found = answer["choices"][0]["message"]["content"].strip()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert found == lg.chat(special, text).strip() != lg.chat(edge, text).strip()


def test_a_value_too_large_for_float16_is_an_error(tmp_path):
    edge = lg.load_model(nano.EDGE)
    large = edge.replace(params=edge.params | {"embed": edge.params["embed"] * 1e7})
    with pytest.raises(WeightsError, match=r"token_embd\.weight: a value does not fit float16"):
        export_gguf(large, tmp_path / "x.gguf", "f16")
    assert not list(tmp_path.iterdir())


def test_files_are_replaced_only_when_told(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_gguf(nano.EDGE, path)
    with pytest.raises(ConfigError, match="expected one of f32, f16, bf16"):
        export_gguf(nano.EDGE, path, "q3", overwrite=True)
    with pytest.raises(OutputError, match="is not a GGUF file, so it is not replaced"):
        export_gguf(nano.EDGE, path, overwrite=True)
    assert path.read_text() == "mine"
    path.write_bytes(b"GGUF of old")
    export_gguf(nano.EDGE, path, overwrite=True)
    assert stored(path)[1]["general.architecture"] == "qwen2"


def test_what_is_read_is_never_replaced(tmp_path):
    """The source, a file in its folder, the base, and the file of a loaded model."""
    shutil.copytree(nano.EDGE, tmp_path / "edge")
    edge, path = tmp_path / "edge", tmp_path / "x.gguf"
    export_gguf(edge, path)
    before = path.read_bytes()
    for call in (
        partial(export_gguf, path, path),
        partial(export_gguf, edge, edge / "model.safetensors"),
        partial(export_gguf, edge, edge / "new.gguf"),
        partial(export_gguf, lg.load_model(path), path),
        partial(export_onto_gguf, edge, path, path),
        partial(export_onto_gguf, edge, path, edge / "model.safetensors"),
    ):
        with pytest.raises(OutputError, match=r"which is read\. Choose another place"):
            call(overwrite=True)
    assert path.read_bytes() == before
    names = [sorted(one.name for one in folder.iterdir()) for folder in (edge, nano.EDGE)]
    assert names[0] == names[1]


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'lorage_jax\[gguf\]'"):
        export_gguf(nano.EDGE, tmp_path / "x.gguf")


def test_a_full_disk_is_named(tiny_disk):
    with pytest.raises(OutputError, match="No space left"):
        export_gguf(nano.EDGE, tiny_disk / "x.gguf")
    assert not list(tiny_disk.iterdir())


def test_without_tokenizer_files_there_is_no_file(tmp_path):
    make_tiny("llama", tmp_path / "model", tokenizer=False)
    with pytest.raises(WeightsError, match="no tokenizer files"):
        export_gguf(tmp_path / "model", tmp_path / "x.gguf")
