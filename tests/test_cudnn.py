"""Attention by cuDNN: what is given to its kernels, and on a GPU also what they compute."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax import cudnn, ops
from lorage_jax.config import MeshConfig
from lorage_jax.hf.load import load_model
from lorage_jax.models.decoder import Decoder
from lorage_jax.sharding import Layout, make_mesh
from tests.tiny import padded_batch

ON_GPU = jax.default_backend() == "gpu"


def case(queries, keys, heads=4, kv_heads=2, size=16, dtype=np.float32):
    """Two rows of several texts; the last queries of the second one see no key."""
    rng = np.random.default_rng(0)
    shapes = [(2, queries, heads, size), *[(2, keys, kv_heads, size)] * 2]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    lead = keys - queries
    text = np.arange(keys) * 3 // keys
    seen = np.arange(keys) <= np.arange(queries)[:, None] + lead
    seen &= (text == text[lead:, None]) | (np.arange(keys) < lead)
    mask = np.stack([seen, seen])
    mask[1, -3:] = False
    weights = np.where(mask.any(-1), 1.0, 0.0)[:, :, None, None]
    return (q, k, v), jnp.asarray(mask), weights


def values_and_slopes(function, arguments, weights):
    def loss(arguments):
        y = jnp.where(weights > 0, function(*arguments).astype(jnp.float32), 0)
        return jnp.sum(jnp.sin(y)), y

    (_, y), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
    return [np.asarray(x, np.float32) for x in (y, *slopes)]


@pytest.fixture
def products(monkeypatch):
    """The kernel's arguments, with its results by XLA's products, which a CPU has."""
    calls = []

    def kernel(q, k, v, mask, scale):
        calls.append((q.shape, k.shape, mask.shape))
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")

    monkeypatch.setattr(cudnn, "_kernel", kernel)
    return calls


@pytest.mark.parametrize(("queries", "keys"), [(24, 24), (21, 30)])
@pytest.mark.parametrize("mesh", [None, (2, 1, 2)])
def test_equals_our_attention(products, queries, keys, mesh):
    arguments, mask, weights = case(queries, keys)
    layout = None
    if mesh is not None:
        layout = Layout(make_mesh(MeshConfig(*mesh), jax.devices("cpu")[: int(np.prod(mesh))]))

    def kernels(q, k, v):
        return cudnn.cudnn_attention(q, k, v, mask, 0.3, layout)

    def ours(q, k, v):
        return ops.attention(q, k, v, mask, 0.3, None)

    found = values_and_slopes(kernels, arguments, weights)
    wanted = values_and_slopes(ours, arguments, weights)
    for name, one, other in zip(("y", "q", "k", "v"), found, wanted, strict=True):
        assert np.abs(other).max() > 0.1, name
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)
    padded = [-(-length // cudnn.MULTIPLE) * cudnn.MULTIPLE for length in (queries, keys)]
    rows, parts = (2, 1) if mesh is None else (1, 2)
    q_shape, k_shape, mask_shape = products[0]
    assert q_shape == (rows, padded[0], 4 // parts, 16)
    assert k_shape == (rows, padded[1], 2 // parts, 16)
    assert mask_shape == (rows, 1, *padded)


@pytest.mark.parametrize(
    ("capability", "platform", "dtype", "size", "cap", "computed"),
    [
        ("9.0", "gpu", jnp.bfloat16, 64, None, True),
        ("8.0", "gpu", jnp.float16, 128, None, True),
        ("7.5", "gpu", jnp.bfloat16, 64, None, False),
        ("gfx942", "gpu", jnp.bfloat16, 64, None, False),  # AMD
        (None, "cpu", jnp.bfloat16, 64, None, False),
        ("9.0", "gpu", jnp.float32, 64, None, False),
        ("9.0", "gpu", jnp.bfloat16, 256, None, False),
        ("9.0", "gpu", jnp.bfloat16, 20, None, False),
        ("9.0", "gpu", jnp.bfloat16, 64, 50.0, False),
    ],
)
def test_what_the_kernels_compute(monkeypatch, capability, platform, dtype, size, cap, computed):
    device = SimpleNamespace(platform=platform)
    if capability is not None:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    arguments, _, _ = case(8, 8, size=size, dtype=dtype)
    assert cudnn.computes_attention(*arguments, cap, None) is computed
    q, k, v = arguments
    assert not cudnn.computes_attention(q, k.astype(jnp.float32), v, cap, None)
    layout = object.__new__(Layout)
    object.__setattr__(layout, "mesh", SimpleNamespace(devices=np.array([device], object)))
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    assert cudnn.computes_attention(*arguments, cap, layout) is computed
    assert not cudnn.computes_attention(*arguments, cap, None), "several devices, no layout"


def test_decoder_asks_the_kernels(products, monkeypatch, tiny):
    """A model with a sliding window in some layers; padding on both sides."""
    model = load_model(tiny("gemma3_text")[0])
    tokens, mask = map(jnp.asarray, padded_batch())
    decoder = Decoder(model.config)

    def hidden():
        apply = jax.jit(lambda params: decoder.apply({"params": params}, tokens, mask).hidden)
        return np.asarray(apply(model.params))

    wanted = hidden()
    assert not products
    monkeypatch.setattr("lorage_jax.models.layer.computes_attention", lambda *_: True)
    found = hidden()
    assert products
    real = np.asarray(mask)
    np.testing.assert_allclose(found[real], wanted[real], atol=2e-4)


@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (301, 333)])
@pytest.mark.parametrize("size", [64, 128])
def test_kernels_equal_our_attention(queries, keys, size):
    arguments, mask, weights = case(queries, keys, 8, 2, size, jnp.bfloat16)
    assert cudnn.computes_attention(*arguments, None, None)

    def kernels(q, k, v):
        return cudnn.cudnn_attention(q, k, v, mask, 0.3, None)

    def ours(q, k, v):
        return ops.attention(q, k, v, mask, 0.3, None)

    found = values_and_slopes(kernels, arguments, weights)
    wanted = values_and_slopes(ours, arguments, weights)
    for name, one, other in zip(("y", "q", "k", "v"), found, wanted, strict=True):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert error < 0.02, (name, error)
