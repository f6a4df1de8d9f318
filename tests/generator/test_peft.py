"""Adapters of PEFT, merged: logits as PEFT's own, on the same base and the same folder."""

import json
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from tests.tiny import FAMILIES, make_generator, make_tiny, random_card, torch_logits

pytestmark = [
    # peft asks transformers in a way that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = np.asarray([np.arange(5, 29)])
ATOL = 1e-5


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """bases(family, **fields) -> folder of a random model with logits of a usual size."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def get(family: str, **fields):
        key = (family, *sorted(fields.items()))
        if key not in made:
            made[key] = root / str(len(made))
            make_tiny(family, made[key], initializer_range=0.05, **fields)
        return made[key]

    return get


@pytest.fixture
def write(tmp_path):
    """write(base folder, name, dtype, **LoraConfig's fields) -> folder of a random adapter."""

    def write(base, name="adapter", dtype=torch.float32, seed=0, **fields):
        torch.manual_seed(seed)
        config = peft.LoraConfig(task_type="CAUSAL_LM", **({"r": 4} | fields))
        model: Any = peft.get_peft_model(torch_model(base), config)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_magnitude" in key:
                    value.mul_(1 + 0.3 * torch.rand_like(value))
                elif "lora_" in key or (value.requires_grad and key.endswith("bias")):
                    value.normal_(0, 0.1)
        model.save_pretrained(tmp_path / name)
        file = tmp_path / name / "adapter_model.safetensors"
        save_file({k: v.to(dtype).contiguous() for k, v in load_file(file).items()}, file)
        return tmp_path / name

    return write


def torch_model(folder) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="eager", dtype=torch.float32
    ).eval()


def peft_logits(base, *folders):
    """PEFT's logits with one adapter, or with the sum of several."""
    model: Any = peft.PeftModel.from_pretrained(torch_model(base), str(folders[0]))
    for number, folder in enumerate(folders[1:]):
        model.load_adapter(str(folder), f"more{number}")
    model.base_model.set_adapter(list(model.peft_config))
    return torch_logits(model.eval(), TOKENS)


def logits(model):
    return np.asarray(forward(model, TOKENS))


def check(base, folder):
    ours = logits(load_adapter(folder, load_model(base)))
    np.testing.assert_allclose(ours, peft_logits(base, folder), atol=ATOL)
    assert np.abs(ours - logits(load_model(base))).max() > 1e-2  # the adapter does something


def test_vera(bases, tmp_path):
    """Its projections come with the folder; without them, only torch could draw them."""
    base = bases("qwen2")
    torch.manual_seed(0)
    modules = ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]
    config = peft.VeraConfig(task_type="CAUSAL_LM", r=6, target_modules=modules)
    model: Any = peft.get_peft_model(torch_model(base), config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "vera_lambda" in key:
                value.normal_(0, 0.5)
    model.save_pretrained(tmp_path / "vera")
    check(base, tmp_path / "vera")
    file = tmp_path / "vera" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"save_projection": False}))
    with pytest.raises(WeightsError, match="save_projection is off"):
        load_adapter(tmp_path / "vera", load_model(base))


PATTERNS = {
    "rank_pattern": {
        "q_proj": 2,
        r"1\.mlp\.up_proj": 6,
        "^model.layers.0.mlp.down_proj": 3,
    },
    "alpha_pattern": {"up_proj": 20, r".*\.(k|v)_proj": 5},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["gate_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 3, "r": 7},
        {"target_modules": ALL, "use_rslora": True},
        {"target_modules": "all-linear", "lora_alpha": 16, **PATTERNS},
        {"target_modules": ALL, "use_dora": True, "lora_alpha": 16, **PATTERNS},
        {"target_modules": ["up_proj", "o_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": r".*\.[12]\.(mlp\.down|self_attn\.o)_proj"},
        {"target_modules": ALL, "exclude_modules": r".*\.1\..*"},
        {"target_modules": ALL, "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"]},
        {"target_modules": ["1.self_attn.k_proj", "model.layers.0.mlp.gate_proj"]},
        {"target_modules": ALL, "init_lora_weights": "orthogonal", "fan_in_fan_out": True},
        {"target_modules": ["v_proj", "lm_head"]},
        {"target_modules": ["q_proj", "k_proj", "up_proj"], "bias": "all"},
        {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"},
        {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
    ],
    ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items() if "pattern" not in k)[:60],
)
def test_a_lora_as_peft_merges_it(bases, write, fields):
    base = bases("qwen2")
    check(base, write(base, **fields))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen2"])
def test_every_family(bases, write, family):
    """Phi-3 fuses projections into one module, OPT has other names."""
    base = bases(family)
    dora = family in ("phi3", "opt")
    check(base, write(base, target_modules="all-linear", use_dora=dora))


def test_biases_outside_of_the_layers(bases, write):
    """OPT's last norm has one."""
    base = bases("opt")
    folder = write(base, target_modules=["q_proj"], bias="all")
    tensors = load_file(folder / "adapter_model.safetensors")
    assert "base_model.model.model.decoder.final_layer_norm.bias" in tensors
    check(base, folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_widened_first(bases, write, dtype):
    base = bases("llama")
    check(base, write(base, dtype=dtype, target_modules=ALL, lora_alpha=3, r=7))


def test_a_lora_on_a_tied_head_unties_it(bases, write, tmp_path):
    base = bases("llama", tie_word_embeddings=True)
    folder = write(base, target_modules=["lm_head", "q_proj"])
    edge = load_model(base)
    adapted = load_adapter(folder, edge)
    np.testing.assert_allclose(logits(adapted), peft_logits(base, folder), atol=ATOL)
    np.testing.assert_array_equal(adapted.params["embed"], edge.params["embed"])
    assert edge.config.tied_head and not adapted.config.tied_head
    with pytest.raises(WeightsError, match="untied its head"):
        export_merged(adapted, tmp_path / "merged")


def test_several_adapters(bases, write):
    """One after the other, as PEFT does; a DoRA scales what was merged before."""
    base = bases("llama")
    one = write(base, "one", target_modules=["q_proj", "up_proj"], r=2)
    two = write(base, "two", seed=1, target_modules=["up_proj", "down_proj"], r=5, use_rslora=True)
    three = write(base, "three", seed=2, target_modules=["up_proj"], use_dora=True)
    edge = load_model(base)
    for order in ([one, two, three], [three, one, two], [one, three]):
        ours = logits(load_adapter(order, edge))
        np.testing.assert_allclose(ours, peft_logits(base, *order), atol=ATOL)
    with pytest.raises(ConfigError, match="DoRA"):
        load_adapter([one, three], edge, [1.0, 0.5])

    model: Any = peft.PeftModel.from_pretrained(torch_model(base), str(one), "one")
    model.load_adapter(str(two), "two")
    model.add_weighted_adapter(["one", "two"], [0.5, 1.5], "sum", combination_type="cat")
    model.base_model.set_adapter("sum")
    ours = logits(load_adapter([one, two], edge, weights=[0.5, 1.5]))
    np.testing.assert_allclose(ours, torch_logits(model.eval(), TOKENS), atol=ATOL)
    for weights in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="2 adapters"):
            load_adapter([one, two], edge, weights)


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"init_lora_weights": "pissa"}, "changed the base's weights before training"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "something"}, "expected true, false or one of gaussian"),
        ({"init_lora_weights": 3}, "init_lora_weights is 3"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [3]}, "token embeddings"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; expected true or false"),
        ({"use_rslora": 1}, "use_rslora is 1"),
        ({"bias": "some"}, "bias is 'some'; expected 'none', 'all' or 'lora_only'"),
        ({"r": 0}, "r is 0; expected 1 or more"),
        ({"r": 4.5}, "r is 4.5"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0"),
        ({"alpha_pattern": {"q_(": 1}}, "not a regular expression"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "to be a list of names"),
        ({"layers_pattern": "layers"}, "needs layers_to_transform"),
        ({"target_modules": ["c_attn"]}, "names no linear layer"),
        ({"r": 5}, r"lora_A.weight has shape \(4, 48\); expected \(5, 48\)"),
        ({"target_modules": ["q_proj", "k_proj"]}, "k_proj.lora_A.weight is missing"),
        ({"layers_to_transform": [0]}, "is not asked for by adapter_config.json"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
    ],
)  # fmt: skip
def test_what_is_refused(bases, write, fields, named):
    base = bases("llama")
    folder = write(base, target_modules=["q_proj"])
    change(folder, **fields)
    with pytest.raises(WeightsError, match=named):
        load_adapter(folder, load_model(base))


def test_settings_without_meaning_are_passed_over(bases, write):
    """As PEFT: fields of newer versions and other tools, and every setting of training."""
    base = bases("llama")
    folder = write(base, target_modules=["q_proj"])
    change(folder, brand_new=None, unsloth_fixed=True, lora_dropout=0.5, modules_to_save=[])
    change(folder, use_dora=None, init_lora_weights="gaussian", layers_to_transform=[])
    check(base, folder)


def test_tensors_beside_the_lora(bases, write):
    """Copies of the base's weights are left alone; changed ones are refused, and so are pickles."""
    base = bases("llama")
    folder = write(base, target_modules=["q_proj"])
    file, edge = folder / "adapter_model.safetensors", load_model(base)
    tensors = load_file(file)
    embed = torch_model(base).model.embed_tokens.weight.detach().clone()
    name = "base_model.model.model.embed_tokens.weight"
    save_file(tensors | {name: embed}, file)
    check(base, folder)
    for extra, named in (
        ({name: embed * 1.1}, "a weight of the base itself, changed in training"),
        ({name: torch.cat([embed, embed])}, "was the vocabulary resized"),
        ({name.replace("weight", "lora_embedding_A"): embed}, "a LoRA on the embeddings"),
        ({"model.layers.0.x": embed}, r"is not known; expected base_model.model\.\.\."),
    ):
        save_file(tensors | extra, file)
        with pytest.raises(WeightsError, match=named):
            load_adapter(folder, edge)
    first = sorted(tensors)[0]
    save_file(tensors | {first: tensors[first] * float("nan")}, file)
    with pytest.raises(WeightsError, match="NaN or infinity"):
        load_adapter(folder, edge)
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match="a pickle, which is never opened"):
        load_adapter(folder, edge)


def test_an_adapted_model_is_another_model(bases, write, cloud_dir, tmp_path):
    base = bases("llama")
    folder = write(base, target_modules=["q_proj"])
    edge = load_model(base)
    adapted, half = load_adapter(folder, edge), load_adapter(folder, edge, [0.5])
    assert len({edge.fingerprint, adapted.fingerprint, half.fingerprint}) == 3
    assert adapted.fingerprint == load_adapter(folder, load_model(base)).fingerprint
    export_merged(adapted, tmp_path / "merged")
    np.testing.assert_allclose(
        torch_logits(torch_model(tmp_path / "merged"), TOKENS), logits(adapted), atol=ATOL
    )
    gen = make_generator(cloud_dir, base)
    card = random_card(gen)
    with pytest.raises(WeightsError, match="already has an adapter merged"):
        merge(adapted, gen.pool, card)
    with pytest.raises(WeightsError, match="already has an adapter merged"):
        forward(adapted, TOKENS, gates=np.asarray(card.gates), pool=gen.pool)
    with pytest.raises(WeightsError, match="already has a card merged"):
        load_adapter(folder, merge(edge, gen.pool, card))
