"""bfloat16 weights on a CPU: shared memory, the same model, and no float32 copy of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from lorage_jax.config import MeshConfig
from lorage_jax.hf.load import load_model
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.models import model as models
from lorage_jax.models.bits import TABLE, cache_dtype, program_params, restored, stored
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.presets import plain_decoder, random_model
from lorage_jax.sharding import Layout, make_mesh

TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12) % 200 + 3
BIG = plain_decoder(
    "llama", vocab_size=64, width=128, layers=8, heads=4, kv_heads=2, ffn_width=1024
)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def both(request, tiny):
    """(bfloat16 model, the same weights in float32)."""
    narrow = load_model(tiny(request.param)[0], dtype="bfloat16")
    return narrow, narrow.replace(params=jax.tree.map(lambda x: x.astype("float32"), narrow.params))


def test_views_share_the_memory(both):
    params = both[0].params
    views = program_params(params)
    assert views["layers"]["up"].dtype == views[TABLE].dtype == jnp.uint16
    for view, own in (
        (views["layers"]["up"], params["layers"]["up"]),
        (views[TABLE], params["embed"]),
    ):
        assert view.unsafe_buffer_pointer() == own.unsafe_buffer_pointer()
    assert cache_dtype(views) == jnp.uint16 and cache_dtype(params) == jnp.bfloat16


def test_what_a_cache_stores_is_read_back():
    x = jnp.asarray([1.0, -2.5, 1e-3, 3.14159])
    kept = stored(x, jnp.uint16)
    assert kept.dtype == jnp.uint16 and stored(x, x.dtype) is x
    np.testing.assert_array_equal(restored(kept), x.astype(jnp.bfloat16))


def test_other_dtypes_and_abstract_arrays(both):
    assert program_params(both[1].params) is both[1].params
    elsewhere = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), both[0].params)
    assert program_params(elsewhere) is elsewhere  # no device is known: no CPU
    here = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), both[0].params
    )
    found = program_params(abstract)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
        lambda x: (x.shape, x.dtype), program_params(both[0].params)
    )


def test_logits_are_nearer_to_float32_than_bfloat16_activations(both):
    narrow, wide = both
    want = np.asarray(models.forward(wide, TOKENS))
    found = np.asarray(models.forward(narrow, TOKENS))
    plain = np.asarray(Decoder(narrow.config).apply({"params": narrow.params}, TOKENS).logits)
    error, before = np.abs(found - want).mean(), np.abs(plain - want).mean()
    assert 0 < error < 0.7 * before < 0.1 * np.abs(want).mean()


def test_one_row_of_one_token(both):
    """A single row is padded to two inside; its result is that of the longer batch."""
    narrow = both[0]
    whole = np.asarray(models.forward(narrow, TOKENS))[:1, :1]
    np.testing.assert_allclose(models.forward(narrow, TOKENS[:1, :1]), whole, atol=2e-4)


def test_sharded_weights_give_the_same_logits(tiny):
    folder = tiny("llama")[0]
    layout = Layout(make_mesh(MeshConfig(2, 2, 2)))
    one, many = load_model(folder, "bfloat16"), load_model(folder, "bfloat16", layout)
    views = program_params(many.params)
    assert views["layers"]["up"].sharding == many.params["layers"]["up"].sharding
    want = np.asarray(models.forward(one, TOKENS))
    np.testing.assert_allclose(models.forward(many, TOKENS), want, atol=0.02)


def test_decoding_follows_the_forward_pass(both):
    narrow = both[0]
    (new,) = generate_tokens(narrow, TOKENS[:1].tolist(), max_new_tokens=6)
    row = np.asarray([[*TOKENS[0], *new]], np.int32)
    likeliest = np.argmax(models.forward(narrow, row), axis=-1)[0, 11:-1]
    assert new and new == likeliest[: len(new)].tolist()


def test_no_float32_copy_of_the_weights():
    params = random_model(BIG, "bfloat16").params
    weights = sum(x.nbytes for x in jax.tree.leaves(params["layers"]))

    def needed(params):
        program = jax.jit(lambda p, t: Decoder(BIG).apply({"params": p}, t).logits)
        return program.lower(params, TOKENS).compile().memory_analysis().temp_size_in_bytes

    assert needed(program_params(params)) < 0.5 * weights < 1.5 * weights < needed(params)
