"""GGUF files read as models and written as Hugging Face folders."""

import dataclasses

import gguf
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

import lorage_jax as lg
from lorage_jax.errors import WeightsError
from lorage_jax.files.gguf import open_gguf_file
from lorage_jax.gguf.tokenizer import NAMES
from lorage_jax.gguf.vocabulary import CONTROLS
from lorage_jax.hf.config import model_config
from lorage_jax.hf.gguf import gguf_tokenizer
from lorage_jax.hf.import_gguf import import_gguf
from lorage_jax.hf.source import open_model, read_model_config
from lorage_jax.hf.tokenizer import load_tokenizer
from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.llamacpp.file import TYPES
from tests.llamacpp.models import COMPUTED, rewrite, split_as, texts, tiny_folder
from tests.llamacpp.server import LlamaServer, check_read_tokens, log_softmax
from tests.tiny import VARIANTS, VOCAB, make_tiny, torch_logits


def in_llama_cpp(config):
    """The config as far as llama.cpp has it: a mistral is a llama there."""
    if config.family == "mistral":
        config = dataclasses.replace(config, family="llama")
    if config.family.startswith("gemma") or not any(config.sliding):
        return config
    none = {"window": None, "sliding": (False,) * config.layers}
    return dataclasses.replace(config, max_positions=config.window, **none)


@pytest.mark.parametrize("variant", COMPUTED)
def test_a_folder_comes_back(tmp_path, variant):
    """Tensors, config and tokens are those of the folder that the file was made of."""
    family, fields = VARIANTS[variant]
    more, length = COMPUTED[variant]
    torch_model = tiny_folder(tmp_path / "model", family, **(fields | more))
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert set(before) == set(after)
    for name, values in before.items():
        offset = family.startswith("gemma") and "norm" in name
        np.testing.assert_allclose(after[name], values, rtol=0, atol=1.2e-7 if offset else 0)
    expected = in_llama_cpp(model_config(tmp_path / "model"))
    assert read_model_config(tmp_path / "model.gguf") == expected == model_config(tmp_path / "back")
    begun, read, loaded = (
        open_model(tmp_path / name, with_tokenizer=True).tokenizer
        for name in ("model", "model.gguf", "back")
    )
    for text in texts(40):
        assert begun(text)["input_ids"] == read(text)["input_ids"] == loaded(text)["input_ids"]
        assert read.decode(read(text)["input_ids"]) == begun.decode(begun(text)["input_ids"])
    found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", dtype="float32", attn_implementation="eager"
    ).eval()
    tokens = np.random.default_rng(0).integers(3, VOCAB - 5, (1, length))
    expected = torch_logits(torch_model, tokens)
    np.testing.assert_allclose(torch_logits(found, tokens), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in COMPUTED if name != "llama-tied-rope3"])
def test_logits_of_every_family(tmp_path, variant):
    check_logits(tmp_path, variant)


def test_logits(tmp_path):
    check_logits(tmp_path, "llama-tied-rope3")


def check_logits(folder, variant):
    family, fields = VARIANTS[variant]
    more, length = COMPUTED[variant]
    torch_model = tiny_folder(folder / "model", family, **(fields | more))
    export_gguf(folder / "model", folder / "model.gguf", "f32")
    tokens = np.random.default_rng(0).integers(3, VOCAB - 5, (1, length)).astype(np.int32)
    found = np.asarray(lg.forward(lg.load_model(folder / "model.gguf"), tokens))
    np.testing.assert_allclose(found, torch_logits(torch_model, tokens), atol=5e-4)


YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 32}


@pytest.mark.parametrize(
    ("family", "scaling"),
    [("qwen3", YARN), ("qwen3", {"type": "linear", "factor": 4.0}), ("llama", YARN)],
)
def test_rope_of_other_files_is_that_of_llama_cpp(tmp_path, family, scaling):
    """Scalings that are in files of others, and that lorage writes only partly."""
    tiny_folder(tmp_path / "model", family, use_sliding_window=False)
    export_gguf(tmp_path / "model", tmp_path / "plain.gguf", "f32")
    more = {f"{family}.rope.scaling.{name}": value for name, value in scaling.items()}
    rewrite(tmp_path / "plain.gguf", tmp_path / "model.gguf", more)
    tokens = np.random.default_rng(0).integers(3, VOCAB - 5, (1, 100)).astype(np.int32)
    expected = LlamaServer(tmp_path / "model.gguf").log_probabilities(tokens[0], VOCAB)
    found = np.asarray(lg.forward(lg.load_model(tmp_path / "model.gguf"), tokens))
    np.testing.assert_allclose(log_softmax(found[0, -1]), expected, atol=2e-4)
    plain = np.asarray(lg.forward(lg.load_model(tmp_path / "plain.gguf"), tokens))
    assert np.abs(plain - found).max() > 0.1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny llama's file."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_folder(folder / "model", "llama")
    export_gguf(folder / "model", folder / "model.gguf", "f32")
    return folder / "model.gguf"


ADAPTER = {"general.type": "adapter", "adapter.type": "lora"}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"general.architecture": "mamba"}, "its architecture is 'mamba'; expected one of llama, "),
        ({"llama.expert_count": 8}, "a mixture of 8 experts"),
        ({"llama.attention.head_count_kv": [2, 1, 2]}, "head_count_kv differs from layer to layer"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "'longrope'"),
        ({"llama.rope.dimension_count": 8}, "8 of 16 channels of a head rotate"),
        ({"llama.attention.value_length": 8}, "values have 8 channels, keys 16"),
        ({"llama.block_count": None}, "llama.block_count is None; expected a number above 0"),
        ({"llama.block_count": 4}, "(?s)do not fit its keys.*layers.3.* is missing"),
        ({"llama.block_count": 1 << 28}, "268435456 layers for 30 tensors"),
        ({"llama.block_count": 2}, r"blk.2.* is not part of a llama"),
        ({"llama.attention.scale": 0.5}, "llama.attention.scale is not supported"),
        ({"llama.attention.causal": False}, "llama.attention.causal is False"),
        ({"llama.rope.scaling.attn_factor": 1.3}, "rope.scaling.attn_factor is 1.3 without yarn"),
        (ADAPTER, "is a LoRA adapter for llama.cpp, not a model: llama-server -m BASE.gguf --lora"),
        ({"general.type": "mmproj"}, "a GGUF file of the type 'mmproj'"),
        ({"split.count": 3}, "one part of a split model.*llama-gguf-split --merge"),
        ({"tokenizer.ggml.pre": "new"}, "'new' splits texts.*lorage import .* --pre NAME"),
        ({"tokenizer.ggml.model": "bert"}, "its tokenizer is of the kind 'bert'"),
    ],
)  # fmt: skip
def test_files_that_are_not_read(tiny, tmp_path, keys, says):
    """One message each, and nothing is written."""
    rewrite(tiny, tmp_path / "x.gguf", dict(keys))
    with pytest.raises(WeightsError, match=says):
        lg.load_model(tmp_path / "x.gguf")
    with pytest.raises(WeightsError, match=says):
        import_gguf(tmp_path / "x.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_keys_that_change_nothing_are_read(tiny, tmp_path):
    keys = {"llama.attention.causal": True, "llama.rope.scaling.attn_factor": 1.0}
    rewrite(tiny, tmp_path / "x.gguf", keys)
    assert lg.load_model(tmp_path / "x.gguf").config == lg.load_model(tiny).config


def test_damaged_files(tiny, tmp_path):
    whole, path = tiny.read_bytes(), tmp_path / "x.gguf"
    header = open_gguf_file(tiny).tensors["token_embd.weight"].start

    def refuse(content, says):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(WeightsError, match=says):
            lg.load_model(path)

    refuse(None, "does not exist; expected a GGUF file")
    refuse(b"", "is empty")
    refuse(b"no model" * 9, "is not a GGUF file: it begins with b'no m'")
    refuse(whole[:4] + b"\1\0\0\0" + whole[8:], "has version 1 of GGUF; expected 2 or 3")
    refuse(whole[:-100], "is cut off: it has .* of .* tensors are not all there, the first is ")
    for size in (6, 30, 100, 1000, header // 2, header - 60):
        refuse(whole[:size], "is cut off")
    rewrite(tiny, tmp_path / "vocabulary.gguf", tensors={})
    with pytest.raises(WeightsError, match="holds a vocabulary and no weights"):
        lg.load_model(tmp_path / "vocabulary.gguf")
    part = tmp_path / "x-00001-of-00003.gguf"
    part.write_bytes(whole)
    with pytest.raises(WeightsError, match="one part of a split model"):
        lg.load_model(part)
    odd = {"rope_freqs.weight": np.array([1, 2, 1, 3, 1, 1, 1, 1], np.float32)}
    values = {one.name: np.array(one.data) for one in gguf.GGUFReader(tiny).tensors}
    rewrite(tiny, tmp_path / "rope.gguf", tensors=values | odd)
    with pytest.raises(WeightsError, match="are not those of Llama 3"):
        lg.load_model(tmp_path / "rope.gguf")


@pytest.mark.parametrize("kind", TYPES)
def test_parts_of_tensors_are_those_of_the_whole(tmp_path, kind):
    """Sharded loading reads parts, also of heads whose rows stand in another order."""
    tiny_folder(tmp_path / "model", "llama", hidden_size=64, intermediate_size=96)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", kind)
    tensors = open_model(tmp_path / "model.gguf").checkpoint
    before = load_file(tmp_path / "model" / "model.safetensors")
    bits = {"f32": 24, "f16": 11, "bf16": 8}.get(kind) or int(kind[1])
    for name, values in before.items():
        whole = np.asarray(tensors.read(name), np.float32)
        np.testing.assert_allclose(whole, values, atol=2.2 * 2.0**-bits * np.abs(values).max())
        index = (slice(16, 48), slice(8, 32)) if values.ndim == 2 else (slice(3, 20),)
        for part in (index, index[:1], (slice(5, 23),), ..., (), slice(2, 9)):
            wanted = whole[part] if part != () else whole
            np.testing.assert_array_equal(np.asarray(tensors.read(name, part), np.float32), wanted)


OTHERS = [name for split in dict.fromkeys(NAMES.values()) for name in NAMES if NAMES[name] == split]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_tokens_of_every_known_name(tmp_path, name):
    tokenizer = split_as(NAMES[name])
    size = len(tokenizer)
    make_tiny("llama", tmp_path / "model", tokenizer=False, vocab_size=size, num_hidden_layers=1)
    tokenizer.save_pretrained(str(tmp_path / "model"))
    export_gguf(tmp_path / "model", tmp_path / "plain.gguf", "f32", pre=name)
    without = dict.fromkeys(("tokenizer.ggml.add_bos_token",))  # llama.cpp knows it by the name
    rewrite(tmp_path / "plain.gguf", tmp_path / "model.gguf", without)
    check_read_tokens(LlamaServer(tmp_path / "model.gguf"), tmp_path / "model.gguf", 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONTROLS - {"</s>"}))
def test_names_that_llama_cpp_takes_for_control_tokens(tmp_path, name):
    """An added token that is not special stays whole in a text; these do not."""
    tokenizer = split_as(NAMES["gpt-2"])
    tokenizer.add_tokens([name, "<plain>"])
    size = len(tokenizer)
    make_tiny("llama", tmp_path / "model", tokenizer=False, vocab_size=size, num_hidden_layers=1)
    tokenizer.save_pretrained(str(tmp_path / "model"))
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    server, read = LlamaServer(tmp_path / "model.gguf"), gguf_tokenizer(tmp_path / "model.gguf")
    for text, count in ((name, 2), ("<plain>", 1)):
        ids = read.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == server.tokens(text) and (len(ids) == 1) == (count == 1)


def test_special_tokens_of_phi3_take_the_space_behind_them(tmp_path):
    folder = tmp_path / "phi-3-tiny"  # llama.cpp knows the model by its name
    tiny_folder(folder, "llama", vocab_size=280)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<unk>", "<|endoftext|>"]})
    tokenizer.save_pretrained(folder)
    export_gguf(tmp_path / "phi-3-tiny", tmp_path / "model.gguf", "f32")
    server, tokenizer = (
        LlamaServer(tmp_path / "model.gguf"),
        gguf_tokenizer(tmp_path / "model.gguf"),
    )
    for text in ("a</s>  b", "a<s>  b", "<s> </s>  <pad>\n b"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == server.post("/tokenize", content=text, parse_special=True)["tokens"], text
    assert len(tokenizer.encode("</s>  b", add_special_tokens=False)) == 2
