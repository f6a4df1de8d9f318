"""Folders as people have them: other names, second heads, leftovers, adapters, quantisation."""

import json
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorage_jax.errors import WeightsError
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from tests.tiny import make_tiny, torch_logits


@pytest.fixture
def change(tiny, tmp_path):
    """Copies a tiny folder and edits its tensors and config: change(variant, edit, **fields)."""

    def make(variant, edit=None, **fields):
        folder = tmp_path / "folder"
        shutil.copytree(tiny(variant)[0], folder, dirs_exist_ok=True)
        tensors = load_file(folder / "model.safetensors")
        if edit is not None:
            tensors = edit(tensors) or tensors
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def prefixed(prefix):
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def without_head(tensors):
    return {name: value for name, value in tensors.items() if name != "lm_head.weight"}


def without_stem(tensors):
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def wrapped_inside(tensors):
    return {n.replace(".layers.0.", ".layers.0._orig_mod."): v for n, v in tensors.items()}


EDITS = {
    "AutoModel": without_stem,
    "DistributedDataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "compiled layer by layer": wrapped_inside,
    "a trainer's attribute": prefixed("policy.model."),
    "AutoModel inside a trainer": lambda t: prefixed("student.")(without_stem(t)),
}


# Without a head of its own, a folder that AutoModel saved lacks one: see below.
WITHOUT_HEAD = ("llama", "phi3")


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (variant, name)
        for variant in ("llama", "llama-tied-rope3", "opt", "phi3")
        for name in EDITS
        if not ("AutoModel" in name and variant in WITHOUT_HEAD)
    ],
)
def test_names_that_one_prefix_explains(tiny, change, name, variant):
    same(load_model(change(variant, EDITS[name])), load_model(tiny(variant)[0]))


def test_automodels_own_folder(tmp_path):
    """Tied: loads, as in transformers, and is exported under a language model's names."""
    make_tiny("qwen2", tmp_path / "m", tie_word_embeddings=True)
    whole = load_model(tmp_path / "m")
    saved = transformers.AutoModel.from_pretrained(tmp_path / "m")
    saved.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    (tmp_path / "m" / "model.safetensors").unlink()
    model = load_model(tmp_path / "m")
    same(model, whole)
    export_merged(model, tmp_path / "out")
    same(load_model(tmp_path / "out"), whole)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert "model.embed_tokens.weight" in index["weight_map"]
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    theirs, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    table = theirs.get_input_embeddings().weight.detach()
    np.testing.assert_array_equal(table, whole.params["embed"])


def test_without_a_head(change):
    folder = change("llama", without_head)
    with pytest.raises(WeightsError, match="without a head") as error:
        load_model(folder)
    assert "1 problem)" in str(error.value)
    with pytest.raises(WeightsError, match="without a head"):
        load_model(change("llama", lambda t: without_stem(without_head(t))))


@pytest.mark.parametrize("difference", [1.0, 1e-6])
def test_a_tied_head_that_differs_is_used(tiny, change, tmp_path, difference):
    def edit(tensors):
        head = tensors["model.embed_tokens.weight"].clone()
        head[5, 3] += difference
        tensors["lm_head.weight"] = head

    folder = change("llama-tied-rope3", edit)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = load_model(folder)
    assert not model.config.tied_head
    np.testing.assert_array_equal(model.params["head"].T, theirs.lm_head.weight.detach())
    export_merged(model, tmp_path / "out")  # its config.json is the base's
    same(load_model(tmp_path / "out"), model)
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    tokens = np.arange(3, 15)[None]
    np.testing.assert_array_equal(torch_logits(back, tokens), torch_logits(theirs, tokens))


def test_a_tied_table_under_the_heads_name(tiny, change):
    """transformers ties the embeddings to the head, too."""
    folder = change(
        "llama-tied-rope3",
        lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}),
    )
    same(load_model(folder), load_model(tiny("llama-tied-rope3")[0]))
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.get_input_embeddings().weight.data_ptr() == theirs.lm_head.weight.data_ptr()


def test_a_value_head_is_no_part_of_the_language_model(tiny, change):
    folder = change("llama", lambda t: t.update({"v_head.summary.weight": torch.zeros(1, 48)}))
    same(load_model(folder), load_model(tiny("llama")[0]))


LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (LAYER + "self_attn.q_proj.lora_A.default.weight", "inside peft"),
        (LAYER + "mlp.experts.0.w1.weight", "mixture of experts"),
        ("vision_tower.encoder.weight", "multimodal"),
        (LAYER + "self_attn.q_norm.weight", "Qwen3, Gemma 3 or OLMo 2"),
        (LAYER + "self_attn.q_proj.bias", "attention_bias: true"),
        (LAYER + "mlp.gate_proj.bias", "mlp_bias: true"),
        ("model.layers.3.mlp.gate_proj.weight", "further tokens"),
        ("score.weight", "classifier"),
    ],
)
def test_leftovers_are_explained(change, name, words):
    folder = change("llama", lambda t: t.update({name: torch.ones(3)}))
    with pytest.raises(WeightsError, match=words) as error:
        load_model(folder)
    assert f"{name} (3,) is not part of a llama" in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer.h.0.attn.c_attn.weight", "GPT-2"),
        ("layers.0.attention.wq.weight", "Meta's own format"),
        ("gpt_neox.layers.0.attention.weight", "GPT-NeoX"),
        ("bert.encoder.layer.0.output.weight", "BERT"),
        ("something.else", "begins with something.else"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "inside peft"),
    ],
)
def test_another_models_tensors_are_named(change, name, words):
    folder = change("llama", lambda t: {name: torch.zeros(3)})
    with pytest.raises(WeightsError, match=words):
        load_model(folder)


def test_two_models_in_one_file_are_not_guessed_between(change):
    folder = change(
        "llama",
        lambda t: {p + n: v.clone() for p in ("student.", "teacher.") for n, v in t.items()},
    )
    with pytest.raises(WeightsError, match="student"):
        load_model(folder)


def test_another_number_of_layers(change):
    with pytest.raises(WeightsError, match=r"has 3 layers, and num_hidden_layers .* is 5"):
        load_model(change("llama", num_hidden_layers=5))


def test_an_adapter_beside_the_model(change, tmp_path):
    folder = change("llama")
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    (folder / "adapter_config.json").write_text(adapter)
    with pytest.raises(WeightsError, match=r"holds an adapter .*`--adapter FOLDER`"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"is a PEFT adapter.* \(org/base\)"):
        load_model(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ weights of 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "AWQ weights of 4 bits"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8 weights"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes weights of 8 bits"),
        ({"load_in_4bit": True}, "bitsandbytes weights of 4 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors weights"),
        ({"quant_method": "novel"}, "novel weights"),
    ],
)
def test_quantised_configs(change, settings, words):
    with pytest.raises(WeightsError, match=words) as error:
        load_model(change("llama", quantization_config=settings))
    assert "dequantize" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (LAYER + "mlp.up_proj.qweight", torch.zeros(2, dtype=torch.int32), "GPTQ or AWQ"),
        (LAYER + "mlp.up_proj.weight", torch.zeros(2).to(torch.float8_e4m3fn), "is F8_E4M3"),
        (LAYER + "mlp.up_proj.weight_packed", torch.zeros(2), "compressed-tensors"),
        (LAYER + "mlp.up_proj.weight.absmax", torch.zeros(2), "bitsandbytes"),
    ],
)
def test_quantised_tensors_without_a_word_in_config(change, name, tensor, words):
    folder = change("llama", lambda t: t | {name: tensor})
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(WeightsError, match=words) as error:
        load_model(folder)
    assert "holds quantised weights" in str(error.value) and "\n" not in str(error.value)


def test_a_quantised_file_that_is_not_used_does_not_hurt(tiny, change):
    """Beside the model's own file, or files that its index names."""
    eight = {"model.norm.weight": torch.zeros(2).to(torch.float8_e4m3fn)}
    folder, right = change("llama"), load_model(tiny("llama")[0])
    save_file(eight, folder / "model-fp8.safetensors")
    same(load_model(folder), right)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = dict.fromkeys(load_file(folder / "model-1.safetensors"), "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    same(load_model(folder), right)
    index.unlink()
    with pytest.raises(WeightsError, match=r"model.norm.weight is F8_E4M3"):
        load_model(folder)  # what there is cannot be used, and the reason is the nearest


def test_a_leftover_note_on_quantising_does_not_hurt(tiny, change):
    folder = change("llama", quantization_config=None)
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    same(load_model(folder), load_model(tiny("llama")[0]))


def test_a_classifier_is_not_taken_for_a_model_without_its_head(change):
    """Its head is missing as well, but tying it would make nonsense of it."""

    def classify(found):
        found["score.weight"] = found.pop("lm_head.weight")[:2].contiguous()

    folder = change("llama", classify)
    with pytest.raises(WeightsError, match="head of a classifier or reward model") as refused:
        load_model(folder)
    assert "tie_word_embeddings" not in str(refused.value)


def test_no_tokenizer_files(tmp_path):
    make_tiny("llama", tmp_path / "llama", tokenizer=False)
    assert load_model(tmp_path / "llama").tokenizer is None
    make_tiny("qwen2", tmp_path / "qwen2", tokenizer=False)
    with pytest.raises(WeightsError, match="makes up a tokenizer"):
        load_model(tmp_path / "qwen2")


def test_the_home_folder(tiny, change, monkeypatch):
    folder = change("llama")
    monkeypatch.setenv("HOME", str(folder.parent))
    same(load_model("~/folder"), load_model(tiny("llama")[0]))
