"""The kernels, interpreted, against `ops.attention`; sharded over rows and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax import flash, ops
from lorage_jax.config import MeshConfig
from lorage_jax.hf.load import load_model
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder
from lorage_jax.sharding import Layout, make_mesh
from tests.tiny import padded_batch

LENGTH = 150  # not a multiple of 128: two blocks of 128 with 106 slots of padding


def layout(*sizes):
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    return Layout(mesh)


def case(heads, kv_heads, size):
    """Two rows, one padded on the left and one on the right; weights are zero on padding."""
    rng = np.random.default_rng(0)
    shapes = [(2, LENGTH, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, weights = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    valid = np.ones((2, LENGTH), bool)
    valid[0, :20] = valid[1, -30:] = False
    return (2 * q, k, v), jnp.asarray(valid), weights * valid[:, :, None, None]


@pytest.mark.parametrize(
    ("heads", "size", "window", "cap", "mesh"),
    [
        ((4, 2), 64, None, None, (1, 2, 2)),
        ((2, 1), 16, 40, 3.0, (2, 1, 2)),  # one kv head cannot be split, so the heads stay together
    ],
)
def test_flash_attention(monkeypatch, heads, size, window, cap, mesh):
    monkeypatch.setattr(flash, "BLOCK", 128)
    assert flash.block_size(LENGTH) == (128, 256)
    arguments, valid, weights = case(*heads, size)
    where = layout(*mesh)

    def blocks(q, k, v):
        return flash.flash_attention(q, k, v, valid.astype(jnp.int32), window, 0.3, cap, where)

    def whole(q, k, v):
        mask = ops.attention_mask(valid, jnp.arange(LENGTH), window)
        return ops.attention(q, k, v, mask, 0.3, cap)

    def run(function):
        def loss(arguments):
            y = function(*arguments)
            return jnp.sum(y * weights), jnp.where(valid[:, :, None, None], y, 0)

        (_, y), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
        return y, *slopes

    for name, one, other in zip(("y", "q", "k", "v"), run(blocks), run(whole), strict=True):
        assert np.abs(other).max() > 1, name
        np.testing.assert_allclose(one, other, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("window", [None, 40])
def test_texts_do_not_see_each_other(monkeypatch, window):
    """In rows of several texts, the second one begins in the middle of a block."""
    monkeypatch.setattr(flash, "BLOCK", 128)
    arguments, valid, _ = case(2, 1, 16)
    q, k, v = map(jnp.asarray, arguments)
    text = jnp.asarray(np.arange(LENGTH) // 60 + np.zeros((2, 1), int))
    positions = jnp.arange(LENGTH) % 60 + jnp.zeros((2, 1), int)
    segments = jnp.where(valid, text + 1, 0)
    found = flash.flash_attention(q, k, v, segments, window, 0.3, None, layout(1, 1, 1))
    mask = ops.branch_mask(valid, positions, None, window, text)
    wanted = ops.attention(q, k, v, mask, 0.3, None)
    real = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(wanted)[real], atol=1e-4)
    alone = ops.attention_mask(valid, jnp.arange(LENGTH), window)
    assert np.abs(ops.attention(q, k, v, alone, 0.3, None) - wanted)[real].max() > 0.1


def test_block_sizes():
    """As few blocks as possible, with little padding."""
    assert flash.block_size(1) == (128, 128)
    assert flash.block_size(1024) == (512, 1024)
    assert flash.block_size(1046) == (384, 1152)  # 1024 tokens and 22 meta tokens


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("variant", ["llama", "gemma2"])
def test_decoder_with_kernels(tiny, monkeypatch, variant, packed):
    """gemma2 has sliding windows in every other layer; meta tokens follow; padding on both sides.

    Packed rows hold two texts and no meta tokens.
    """
    where = layout(1, 1, 2)
    model = load_model(tiny(variant)[0], layout=where)
    tokens, mask = padded_batch()
    suffix, tail = model.params["embed"][:3], 3
    more = {"head": False}
    if packed:
        tail, half = 0, tokens.shape[1] // 2
        text = jnp.broadcast_to(jnp.arange(tokens.shape[1]) // half, tokens.shape)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]) % half, tokens.shape)
        more |= {"branches": Branches(None, positions, text)}
    else:
        more |= {"suffix": suffix}

    def run(layout):
        decoder = Decoder(model.config, layout=layout)
        apply = jax.jit(
            lambda params: decoder.apply({"params": params}, tokens, mask, **more).hidden
        )
        return np.asarray(apply(model.params))

    wanted = run(where)
    monkeypatch.setattr(Layout, "flash", True)
    found = run(where)
    real = np.pad(mask, ((0, 0), (0, tail)), constant_values=True)
    assert (found != wanted)[real].any()  # computed by other arithmetic
    np.testing.assert_allclose(found[real], wanted[real], atol=2e-4)
