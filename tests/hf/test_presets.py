"""The paper's shapes are the published models', and a cut keeps what a layer is."""

import json

import jax
import pytest

from lorage_jax.errors import ConfigError
from lorage_jax.hf.config import model_config, to_hf_config
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.presets import SHAPES, shape_name
from lorage_jax.models.presets import parameter_count, random_model, with_layers

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}

# As the checkpoints on the Hugging Face hub have them.
PARAMETERS = {
    "tinyllama": 1_100_048_384,
    "qwen2-1.5b": 1_543_714_304,
    "gemma2-2b": 2_614_341_888,
    "llama3-8b": 8_030_261_248,
    "granite-3-2b": 2_533_525_504,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "smollm3-3b": 3_075_098_624,
    "olmo2-1b": 1_484_916_736,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "phi3-mini": 3_821_079_552,
}


# Their config.json on the hub, but for fields that all families have.
COMMON = {"torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True}
HUB = {
    "granite-3-2b": {
        "architectures": ["GraniteForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.1,
        "attention_multiplier": 0.015625,
        "bos_token_id": 0,
        "embedding_multiplier": 12.0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "logits_scaling": 8.0,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "granite",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "qwen3-1.7b": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gemma3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "initializer_range": 0.02,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "smollm3-3b": {
        "architectures": ["SmolLM3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 128012,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "pad_token_id": 128004,
        "pretraining_tp": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "olmo2-1b": {
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": 100257,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "olmo2",
        "num_attention_heads": 16,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "pad_token_id": 100277,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "vocab_size": 100352,
    },
    "opt-2.7b": {
        "_remove_final_layer_norm": False,
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "architectures": ["OPTForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "eos_token_id": 2,
        "ffn_dim": 10240,
        "hidden_size": 2560,
        "init_std": 0.02,
        "layerdrop": 0.0,
        "max_position_embeddings": 2048,
        "model_type": "opt",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "pad_token_id": 1,
        "prefix": "</s>",
        "vocab_size": 50272,
        "word_embed_proj_dim": 2560,
    },
    "phi3-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": 32000,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "vocab_size": 32064,
    },
}


def sliding(*pattern):
    fields = {"window": 8, "sliding": pattern}
    return family_decoder("gemma2", **SIZES, layers=len(pattern), **fields)


def test_they_have_the_published_number_of_parameters():
    assert {name: parameter_count(config) for name, config in SHAPES.items()} == PARAMETERS


@pytest.mark.parametrize("name", SHAPES)
def test_they_survive_a_config_file(tmp_path, name):
    """So that --shape and --edge-config of the same model mean the same."""
    fields = to_hf_config(SHAPES[name], "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert model_config(tmp_path) == SHAPES[name]
    assert shape_name(model_config(tmp_path)) == name


@pytest.mark.parametrize("name", HUB)
def test_they_are_what_the_hub_has(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(HUB[name] | COMMON))
    assert model_config(tmp_path) == SHAPES[name]


def test_a_shape_of_other_sizes_has_no_name():
    assert shape_name(with_layers(SHAPES["tinyllama"], 4)) is None


@pytest.mark.parametrize(
    ("pattern", "layers", "expected"),
    [
        ((True, False, True, False), 1, (True,)),
        ((True, False, True, False), 3, (True, False, True)),
        ((True, False, True, False), 7, (True, False) * 3 + (True,)),
        ((True,) * 3, 5, (True,) * 5),
        ((False, False, False, True), 2, (False, False)),
    ],
)
def test_other_depths_keep_the_pattern_of_sliding_layers(pattern, layers, expected):
    cut = with_layers(sliding(*pattern), layers)
    assert (cut.layers, cut.sliding) == (layers, expected)


def test_other_depths_keep_the_pattern_of_layers_without_rope():
    cut = with_layers(SHAPES["smollm3-3b"], 6)
    assert cut.unrotated == (False, False, False, True, False, False)
    assert with_layers(cut, 3).unrotated == (False,) * 3
    assert with_layers(SHAPES["tinyllama"], 3).unrotated is None


def test_impossible_depths():
    with pytest.raises(ConfigError, match="layers is 0"):
        with_layers(SHAPES["gemma2-2b"], 0)
    with pytest.raises(ConfigError, match=r"first 4 say .* expected at most 4"):
        with_layers(sliding(False, False, False, True), 5)
    with pytest.raises(ConfigError, match="repeating pattern"):  # seen once and a half
        with_layers(sliding(True, False, True), 4)


def test_random_models_are_never_stopped_by_an_eos():
    config = family_decoder("llama", **SIZES, layers=2, eos_ids=(5,))
    model = random_model(config, "bfloat16")
    assert model.config.eos_ids == ()
    assert model.dtype == "bfloat16"
    assert sum(x.size for x in jax.tree.leaves(model.params)) == parameter_count(config)
