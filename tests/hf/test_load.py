"""A Hugging Face folder to arrays: values, dtypes, shards, meshes, and clear failures."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorage_jax.config import MeshConfig
from lorage_jax.errors import WeightsError
from lorage_jax.hf import tables
from lorage_jax.hf.load import load_model
from lorage_jax.hf.save import save_model
from lorage_jax.sharding import Layout, ShardingRules, make_mesh
from tests.tiny import VARIANTS, make_tiny

MESHES = [(8, 1, 1), (2, 2, 2), (1, 4, 2)]


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def assert_is(model, base):
    """Every leaf of ours is bit for bit what torch holds, transposed and with heads split."""
    state = {name: value.float().numpy() for name, value in base.state_dict().items()}
    for path, leaf, row in tables.rows(model.config):
        value = model.params
        for name in path:
            value = value[name]
        assert value.shape == leaf.shape
        value = np.asarray(value, np.float32)
        layered = path[0] == "layers"
        for layer in range(leaf.shape[0]) if layered else [None]:
            want = state[row.name.format(layer=layer)]
            ours = value[layer] if layered else value
            if row.fused:
                want = want[row.start :][: ours.size // want.shape[1]]
            if row.inputs:
                want = want.T
            np.testing.assert_array_equal(ours, want.reshape(ours.shape), err_msg=row.name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_values(tiny, tmp_path, variant):
    """Loaded, and saved again: the same tensors under the same names."""
    folder, base = tiny(variant)
    model = load_model(folder)
    assert_is(model, base)
    save_model(model, tmp_path / "again")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("variant", ["olmo2", "opt", "phi3", "qwen3"])
def test_families_on_a_mesh(tiny, variant):
    """Norms over all heads, a table of positions, leaves that share a tensor: each part read."""
    folder, base = tiny(variant)
    names = {"heads": None, "kv_heads": None, "head_dim": "tensor"}
    for rules in (ShardingRules(), ShardingRules(**names)):
        model = load_model(folder, layout=Layout(make_mesh(MeshConfig(2, 2, 2)), rules))
        assert_is(model, base)
        for name in ("q", "k", "v", "up", "down"):
            array = model.params["layers"][name]
            assert array.addressable_shards[0].data.size * 4 == array.size


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_shards_and_dtypes(tmp_path, stored, wanted):
    base = make_tiny("qwen2", tmp_path / "m", dtype=stored, max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    model = load_model(tmp_path / "m", wanted)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype(wanted)}
    assert_is(model, base.to(torch.bfloat16) if wanted == "bfloat16" else base)
    assert model.dtype == jnp.dtype(wanted)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("shards", [False, True])
def test_meshes(tiny, tmp_path, mesh, shards):
    """Equal values on every mesh, and no device holds more than its part of a big leaf."""
    folder, base = tiny("llama-bias")
    if shards:
        folder = tmp_path / "m"
        base.save_pretrained(str(folder), max_shard_size="20KB")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny("llama-bias")[0] / name, folder)
    data, fsdp, tensor = mesh
    model = load_model(folder, layout=Layout(make_mesh(MeshConfig(data, fsdp, tensor))))
    assert_is(model, base)
    for path, leaf in leaves(model.params):
        assert len(leaf.sharding.device_set) == 8
        name = jax.tree_util.keystr(path)
        parts = fsdp * (1 if "norm" in name else tensor)
        if "bias" in name:
            parts = fsdp if name in ("['layers']['o_bias']", "['layers']['down_bias']") else tensor
        for shard in leaf.addressable_shards:
            assert shard.data.size * parts == leaf.size, name


def test_an_axis_that_does_not_divide_stays_whole(tiny):
    folder, base = tiny("llama")  # 2 kv heads over 8 devices
    model = load_model(folder, layout=Layout(make_mesh(MeshConfig(1, 1, 8))))
    assert_is(model, base)
    assert model.params["layers"]["k"].sharding.is_fully_replicated
    assert not model.params["layers"]["gate"].sharding.is_fully_replicated


@pytest.mark.parametrize("cut", [{"head_dim": "tensor"}, {"ffn": "data", "layers": "tensor"}])
def test_other_rules(tiny, cut):
    """Cuts inside a head, and over layers: read by blocks, cut after."""
    folder, base = tiny("llama-bias")
    names = {"heads": None, "kv_heads": None, "vocab": None, "embed": None, "ffn": None} | cut
    model = load_model(
        folder, layout=Layout(make_mesh(MeshConfig(4, 1, 2)), ShardingRules(**names))
    )
    assert_is(model, base)


@pytest.fixture
def copy(tiny, tmp_path):
    """A folder to break, and how: change(edit of its tensors)."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny("llama")[0], folder)

    def change(edit):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return folder, change


def test_all_problems_at_once(copy):
    folder, change = copy

    def edit(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(64, 47)
        tensors["model.layers.0.self_attn.surprise.weight"] = torch.zeros(3)

    change(edit)
    with pytest.raises(WeightsError) as error:
        load_model(folder)
    text = str(error.value)
    assert "3 problems" in text and str(folder) in text
    assert "model.layers.1.mlp.up_proj.weight is missing; expected shape (80, 48)" in text
    assert "q_proj.weight has shape (64, 47); config says (64, 48)" in text
    assert "surprise.weight (3,) is not part of a llama" in text


def test_what_may_be_there_too(copy, tiny):
    """inv_freq buffers, and a tied head written a second time, are no problem."""
    folder, change = copy
    frequencies = 777.0 ** -(torch.arange(0, 16, 2) / 16)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(lambda t: t.update({name: frequencies}))
    assert_is(load_model(folder), tiny("llama")[1])
    change(lambda t: t.update({name: frequencies * 2}))
    with pytest.raises(WeightsError, match="other rope frequencies"):
        load_model(folder)
    tied, base = tiny("gemma")
    shutil.copytree(tied, folder, dirs_exist_ok=True)
    change(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert_is(load_model(folder), base)


def test_config_of_another_size(copy):
    folder, _ = copy
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 4}))
    with pytest.raises(WeightsError, match=r"model\.layers\.3\..*is missing"):
        load_model(folder)


def test_nothing_there(tmp_path, copy):
    with pytest.raises(WeightsError, match="not a folder"):
        load_model(tmp_path / "nowhere")
    folder, _ = copy
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        load_model(folder)


def test_no_tokenizer_and_bad_weights_are_one_message(tmp_path):
    make_tiny("llama", tmp_path / "m", tokenizer=False)
    (tmp_path / "m" / "tokenizer.json").write_text("nonsense")
    with pytest.raises(WeightsError, match="tokenizer"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WeightsError) as error:
        load_model(tmp_path / "m")
    assert "no usable tokenizer" in str(error.value) and "header" in str(error.value)


def test_unknown_dtype(tiny):
    with pytest.raises(WeightsError, match="int4"):
        load_model(tiny("llama")[0], "int4")
