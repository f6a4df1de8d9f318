"""Which fields of config.json count: those that transformers' model of the family reads."""

import ast
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lorage_jax.errors import WeightsError
from lorage_jax.hf import config_fields
from lorage_jax.hf.config import model_config
from lorage_jax.hf.config_fields import Declared
from lorage_jax.hf.family import get_family
from tests.tiny import FAMILIES, hf_config, torch_logits

OWNERS = ("config", "self.config")
# No model reads these; other families' models read some of them.
EXTRAS = {
    "tokenizer_class": "LlamaTokenizer",
    "max_sequence_length": 2048,
    "unsloth_version": "2025.1",
    "auto_map": {"AutoModel": "modeling_mine.Mine"},
    "rope_interleaved": True,
    "chunk_size_feed_forward": 4,
    "a_tools_leftover": {"nested": [1, 2]},
}
# Read by the classes for images in a text model's file.
IMAGES = {
    *("text_config", "vision_config", "image_token_id", "mm_tokens_per_image"),
    "get_text_config",
}
OTHERS = {
    "residual_multiplier": 0.2,
    "attention_multiplier": 0.7,
    "final_logit_softcapping": 2.0,
    "attn_logit_softcapping": 2.0,
    "query_pre_attn_scalar": 3,
    "hidden_activation": "quick_gelu",
    "activation_function": "quick_gelu",
    "mlp_bias": True,
    "attention_bias": True,
    "sliding_window": 3,
    "layer_types": ["sliding_attention"] * 3,
    "no_rope_layers": [0, 0, 0],
    "num_experts": 8,
    "do_layer_norm_before": False,
    "use_bidirectional_attention": True,
    "embedding_multiplier": 3.0,
}


def written(folder, family, **more):
    config = hf_config(family)
    config.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text()) | more
    (folder / "config.json").write_text(json.dumps(fields))
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_the_model_does_not_read_are_ignored(tmp_path, family):
    """transformers computes the same with them; here the config is the same."""
    plain = written(tmp_path, family)
    ours = model_config(tmp_path)
    declared = Declared(get_family(plain.model_type), plain).names
    foreign = {name: value for name, value in OTHERS.items() if name not in declared}
    if family == "mistral":
        written(tmp_path, family, layer_types=foreign.pop("layer_types"))
        with pytest.raises(WeightsError, match="Ministral mixes"):  # as transformers takes it
            model_config(tmp_path)
    assert len(foreign) > 6
    written(tmp_path, family, **EXTRAS, **foreign)
    assert model_config(tmp_path) == ours
    if family in ("llama", "qwen2", "opt"):
        tokens, logits = np.arange(3, 15)[None], []
        for config in (plain, transformers.AutoConfig.from_pretrained(tmp_path)):
            torch.manual_seed(0)
            config._attn_implementation = "eager"
            model = transformers.AutoModelForCausalLM.from_config(config)
            logits.append(torch_logits(model.eval(), tokens))
        np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gemma", {"use_bidirectional_attention": True}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("qwen2", {"is_causal": False}),
        ("llama", {"per_layer_config": {"0": {"intermediate_size": 8}}}),
        ("opt", {"do_layer_norm_before": False}),
    ],
)
def test_fields_that_it_reads_are_not(tmp_path, family, fields):
    written(tmp_path, family, **fields)
    with pytest.raises(WeightsError, match=next(iter(fields))):
        model_config(tmp_path)


def test_a_declared_field_that_nobody_reads_here_must_have_its_default(tmp_path, monkeypatch):
    """As if a later transformers gave llama a new field."""
    monkeypatch.setattr(config_fields, "READ", config_fields.READ - {"mlp_bias"})
    written(tmp_path, "llama", mlp_bias=False)
    model_config(tmp_path)
    written(tmp_path, "llama", mlp_bias=True)
    with pytest.raises(WeightsError, match="'mlp_bias' = true is not supported"):
        model_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_that_the_models_source_reads_is_accounted_for(family):
    config = hf_config(family)
    ours = get_family(config.model_type)
    read = _reads(type(config).__module__.replace("configuration", "modeling"), config)
    known = config_fields.READ | config_fields.WITHOUT_EFFECT | config_fields.DERIVED
    known |= ours.reads | set(ours.names.values()) | set(config_fields.NEUTRAL)
    known |= config_fields.SHARED_READ | set(config_fields.SHARED)
    # How attention is computed, and heads of classifiers.
    known |= {"_attn_implementation", "num_labels", "problem_type"}
    assert "hidden_size" in read or "num_hidden_layers" in read
    assert not read - known


def _reads(module, config):
    """Names of the fields that classes for this config read in a file of transformers."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    tree, found = ast.parse(Path(spec.origin).read_text("utf-8")), set()
    stem = type(config).__name__.removesuffix("TextConfig").removesuffix("Config")
    for one in tree.body:
        if not isinstance(one, ast.ClassDef) or not one.name.startswith(stem):
            continue
        for node in ast.walk(one):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in OWNERS:
                found.add(node.attr)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                owner, name = node.args[:2]
                if ast.unparse(owner) in OWNERS and isinstance(name, ast.Constant):
                    found.add(name.value)
    return found - IMAGES
