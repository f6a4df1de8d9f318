"""config.json in and out: nothing lost, nothing guessed."""

import dataclasses
import json

import pytest
import transformers

from lorage_jax.config import GeneratorConfig, ModelConfig, OptimizerConfig
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import from_dict, to_dict
from lorage_jax.hf.config import model_config, to_hf_config
from tests.tiny import VARIANTS, hf_config, make_tiny


def write(folder, fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def saved(folder, family, **fields):
    hf_config(family, **fields).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(tmp_path, variant):
    """Ours -> config.json -> ours; and transformers reads ours as what it had written."""
    family, fields = VARIANTS[variant]
    original = hf_config(family, **fields)
    original.save_pretrained(tmp_path)
    ours = model_config(tmp_path)
    back = transformers.AutoConfig.from_pretrained(write(tmp_path, to_hf_config(ours, "float32")))
    again = model_config(tmp_path)
    for field in dataclasses.fields(ModelConfig):
        assert getattr(again, field.name) == getattr(ours, field.name), field.name
    # What changes no arithmetic of inference, or says the same in other words.
    free = {
        "initializer_range",
        "init_std",
        "architectures",
        "dtype",
        "max_window_layers",
        "no_rope_layer_interval",
        "_name_or_path",
    }
    if family == "qwen2" and not original.use_sliding_window:
        free |= {"sliding_window"}
    theirs, back = original.to_dict(), back.to_dict()
    for name in (set(theirs) | set(back)) - free:
        assert back[name] == theirs[name], name


def test_what_the_numbers_mean(tmp_path):
    saved(tmp_path, "gemma2")
    config = model_config(tmp_path)
    assert (config.width, config.layers, config.heads, config.kv_heads) == (48, 3, 4, 2)
    assert (config.head_dim, config.ffn_width, config.rope_theta) == (16, 80, 777.0)
    assert config.query_scale == pytest.approx(20**-0.5)
    assert (config.attn_softcap, config.final_softcap) == (4.0, 3.0)
    assert config.sliding == (True, False, True)
    assert config.eos_ids == (2,)
    saved(tmp_path, "qwen2", max_window_layers=2)
    assert model_config(tmp_path).sliding == (False, False, True)
    saved(tmp_path, "llama", eos_token_id=[2, 7])
    assert model_config(tmp_path).eos_ids == (2, 7)


def test_the_old_way_to_say_rope(tmp_path):
    """transformers 4 wrote rope_theta and rope_scaling at the top."""
    fields = saved(tmp_path, "llama")
    del fields["rope_parameters"]
    scaling = {"rope_type": "linear", "factor": 4.0}
    write(tmp_path, fields | {"rope_theta": 123.0, "rope_scaling": scaling})
    config = model_config(tmp_path)
    assert config.rope_theta == 123.0
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 4.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_json_round_trip(tmp_path, variant):
    family, fields = VARIANTS[variant]
    saved(tmp_path, family, **fields)
    ours = model_config(tmp_path)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(ours)))) == ours


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, ["mamba", "llama"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["GPTQ weights of 4 bits"]),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
            ["'dynamic'", "length of the text", "default, linear, llama3, yarn"],
        ),
        ({"is_causal": False}, ["'is_causal' = false"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder"]),
        ({"hidden_act": "quick_gelu"}, ["quick_gelu"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"is_causal": False, "hidden_act": "mish"}, ["is_causal", "mish"]),
        ({"num_key_value_heads": 3}, ["3 kv heads"]),
    ],
)
def test_unsupported_fields_are_named(tmp_path, change, named):
    write(tmp_path, saved(tmp_path, "llama") | change)
    with pytest.raises(WeightsError) as error:
        model_config(tmp_path)
    for word in [*named, str(tmp_path)]:
        assert word in str(error.value)


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0}
LONGROPE |= {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("opt", {"do_layer_norm_before": False}, ["do_layer_norm_before is False", "OPT-350m"]),
        ("opt", {"word_embed_proj_dim": 24}, ["word_embed_proj_dim is 24", "hidden_size 48"]),
        ("opt", {"enable_bias": False}, ["enable_bias is False", "Galactica"]),
        ("opt", {"layer_norm_elementwise_affine": False}, ["norms without weights"]),
        ("opt", {"_remove_final_layer_norm": True}, ["no norm before the head"]),
        ("opt", {"activation_function": "quick_gelu"}, ["quick_gelu"]),
        ("phi3", {"rope_parameters": LONGROPE}, ["longrope"]),
        ("olmo2", {"model_type": "olmo"}, ["'olmo'", "norms without weights", "supported are"]),
        ("olmo2", {"model_type": "olmoe"}, ["OLMoE is a mixture of experts"]),
        ("phi3", {"model_type": "phimoe"}, ["mixture of experts", "router"]),
        ("phi3", {"model_type": "phi4mm"}, ["images", "export its language model"]),
        ("granite", {"model_type": "granitemoe"}, ["mixture of experts"]),
        ("granite", {"model_type": "granitemoehybrid"}, ["Mamba"]),
    ],
)
def test_near_names_and_layouts_say_what_they_are(tmp_path, family, change, named):
    write(tmp_path, saved(tmp_path, family) | change)
    with pytest.raises(WeightsError) as error:
        model_config(tmp_path)
    for word in [*named, str(tmp_path)]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "fields", "says"),
    [
        ("qwen3_moe", {}, "Qwen3 MoE is a mixture of experts; it would need a router"),
        ("qwen3_next", {}, "mixture of experts.* and has layers of linear attention"),
        ("gemma3n", {}, "Gemma 3n has embeddings of its own in every layer"),
        ("siglip_vision_model", {}, "is the vision tower of a multimodal model.* text part"),
        ("new_moe", {"n_routed_experts": 64}, "is a mixture of experts, which would need a router"),
        ("new_ssm", {"mamba_d_state": 16}, "has state-space or linear-attention layers"),
        (
            "new_vl",
            {"vision_config": {"depth": 3}, "text_config": {"num_experts": 4}},
            "mixture of experts.* for images and text; export its language model",
        ),
    ],
)
def test_a_model_of_another_kind_is_named(tmp_path, model_type, fields, says):
    write(tmp_path, {"model_type": model_type} | fields)
    line = rf"^.*'{model_type}' .*{says}.*supported are gemma, .*$"
    with pytest.raises(WeightsError, match=line):
        model_config(tmp_path)


def test_a_field_at_the_value_that_does_nothing_passes(tmp_path):
    write(tmp_path, saved(tmp_path, "llama") | {"partial_rotary_factor": 1.0, "use_cache": False})
    model_config(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        model_config(tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(WeightsError, match=r"no config\.json"):
        model_config(tmp_path)


def test_model_config_checks_itself(tmp_path):
    saved(tmp_path, "gemma2")
    config = model_config(tmp_path)
    with pytest.raises(ConfigError, match="family is 'bert'; expected one of gemma, "):
        to_hf_config(dataclasses.replace(config, family="bert"), "float32")
    for change in (
        {"activation": "mish"},
        {"sliding": (True,)},
        {"window": None},
        {"head_dim": 15},
    ):
        with pytest.raises(ConfigError):
            dataclasses.replace(config, **change)


def test_generation_config_adds_ends_of_text(tmp_path):
    make_tiny("llama", tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": [2, 7]}')
    assert model_config(tmp_path).eos_ids == (2, 7)
    path.write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(WeightsError, match="generation_config"):
        model_config(tmp_path)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (GeneratorConfig, {"gumbel_temperature": 0.0}),
        (GeneratorConfig, {"router_width": 0}),
        (OptimizerConfig, {"clip_norm": -1.0}),
        (OptimizerConfig, {"betas": (0.9, 2.0)}),
        (OptimizerConfig, {"warmup_steps": -1}),
    ],
)
def test_settings_without_meaning_are_refused(cls, fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        cls(**fields)
