"""The dtype `auto`: by platform, and on a CPU by memory."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import lorage_jax as lg
from lorage_jax.errors import WeightsError
from lorage_jax.hf import dtype as dtypes
from lorage_jax.hf.dtype import check_dtype, choose_dtype
from lorage_jax.models.leaves import Leaf, model_leaves


@pytest.fixture(scope="module")
def folder(tiny):
    return tiny("llama")[0]


def test_auto_goes_by_the_platform(folder):
    config = lg.load_model(folder).config
    assert lg.load_model(folder).dtype == jnp.float32
    assert [choose_dtype("auto", config, name) for name in ("cpu", "tpu", "gpu")] == [
        "float32",
        "bfloat16",
        "bfloat16",
    ]
    assert choose_dtype("float16", config, "tpu") == "float16"


def test_a_cpu_with_too_little_memory_takes_bfloat16_with_a_word(folder, monkeypatch, caplog):
    import jax

    model = lg.load_model(folder, "float32")
    needed = sum(x.nbytes for x in jax.tree.leaves(model.params))
    leaves = jax.tree.leaves(model_leaves(model.config), is_leaf=lambda x: isinstance(x, Leaf))
    assert needed == 4 * sum(int(np.prod(leaf.shape)) for leaf in leaves)
    monkeypatch.setattr(dtypes, "free_memory", lambda: needed)
    assert lg.load_model(folder).dtype == jnp.float32
    assert not caplog.text
    monkeypatch.setattr(dtypes, "free_memory", lambda: needed - 1)
    assert lg.load_model(folder).dtype == jnp.bfloat16
    assert "the model is loaded in bfloat16" in caplog.text
    monkeypatch.setattr(dtypes, "free_memory", lambda: None)
    assert lg.load_model(folder).dtype == jnp.float32


def test_free_memory_is_bounded_by_the_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(dtypes, "CGROUP", tmp_path)
    whole = dtypes.free_memory()
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert dtypes.free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert whole is None or dtypes.free_memory() == pytest.approx(whole, rel=0.5)


def test_an_unknown_dtype_is_refused_before_the_files_are_read(tmp_path):
    with pytest.raises(WeightsError, match="dtype is 'int8'; expected one of auto, float32"):
        lg.load_model(tmp_path / "nothing", "int8")
    check_dtype("auto")


def test_float16_as_transformers(folder):
    """The same weights to the bit; logits and greedy text within float16's arithmetic."""
    model = lg.load_model(folder, "float16")
    theirs = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float16).eval()
    ours = np.asarray(model.params["layers"]["gate"][0])
    np.testing.assert_array_equal(
        ours.T, theirs.model.layers[0].mlp.gate_proj.weight.detach().numpy()
    )
    tokens = np.arange(3, 15)[None]
    with torch.no_grad():
        exact = theirs.float()(torch.tensor(tokens)).logits.numpy()
    logits = np.asarray(lg.forward(model, tokens))
    assert np.abs(logits - exact).max() < 2e-2 * np.abs(exact).max()
    assert isinstance(lg.generate(model, ["a b"], max_new_tokens=4)[0], str)
