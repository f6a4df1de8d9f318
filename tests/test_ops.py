"""Properties that the parity ladder, in float32 and on logits only, cannot show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax import ops, processor


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_gates_weigh_in_float32_under_bfloat16_weights(combine):
    """A gate that bfloat16 would round to 1 still counts: 255 becomes 256."""
    x = jnp.ones((1, 1, 1), jnp.bfloat16)
    a = jnp.full((1, 1, 1), 255.0, jnp.bfloat16)
    b = jnp.ones((1, 1, 1), jnp.bfloat16)
    gate = 1.0 + 2**-8 - 2**-12
    assert float(jnp.asarray(gate, jnp.bfloat16)) == 1.0
    gates = jnp.full((1, 1), gate, jnp.float32)
    power = 2 if combine == "factors" else 1
    expected = float(jnp.asarray(255.0 * gate**power, jnp.bfloat16))
    assert expected == 256.0
    found = jax.jit(ops.gated_low_rank, static_argnums=(4, 5))(x, a, b, gates, combine, 1.0)
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


def normal(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def value_and_gradients(function, arguments, weights):
    """Output and the gradients of its weighted sum, all in float32."""

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    every = tuple(range(len(arguments)))
    run = jax.jit(jax.value_and_grad(loss, argnums=every, has_aux=True))
    (_, y), gradients = run(*arguments)
    return [np.asarray(x, np.float32) for x in (y, *gradients)]


# Attention


def plain_attention(q, k, v, mask, scale, cap):
    """Softmax attention with autodiff's own backward pass, in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") * scale
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, ops.NEGATIVE), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v, precision="highest")


def attention_case(kv_heads, dtype):
    """B 2, T 5, S 7, N 4; the second row's third query sees nothing."""
    q, k, v, weights = normal(
        0, (2, 5, 4, 8), (2, 7, kv_heads, 8), (2, 7, kv_heads, 8), (2, 5, 4, 8)
    )
    mask = np.random.default_rng(1).random((2, 5, 7)) < 0.6
    mask[:, :, 0] = True
    mask[1, 2] = False
    q, k, v = (x.astype(dtype) for x in (3 * q, k, v))
    return (q, k, v), jnp.asarray(mask), weights


@pytest.mark.parametrize(("kv_heads", "cap"), [(1, None), (2, None), (2, 2.0), (4, 2.0)])
def test_attention_is_softmax_attention(kv_heads, cap):
    arguments, mask, weights = attention_case(kv_heads, jnp.float32)
    found, wanted = (
        value_and_gradients(lambda q, k, v, f=f: f(q, k, v, mask, 0.4, cap), arguments, weights)
        for f in (ops.attention, plain_attention)
    )
    for name, a, b in zip(("y", "dq", "dk", "dv"), found, wanted, strict=True):
        assert np.abs(b).max() > 0.1, name
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("blocks", "past"), [(2, 0), (3, 2), (5, 2)])
def test_attention_in_blocks_is_that_of_all_queries(blocks, past):
    """Five queries after `past` slots, none of which sees a later slot."""
    (q, k, v), mask, weights = attention_case(2, jnp.float32)
    k, v, mask = k[:, : 5 + past], v[:, : 5 + past], mask[:, :, : 5 + past].at[:, :, 0].set(True)
    mask &= jnp.arange(5 + past) <= past + jnp.arange(5)[:, None]
    found, wanted = (
        value_and_gradients(
            lambda q, k, v, n=n: ops.attention(q, k, v, mask, 0.4, None, n), (q, k, v), weights
        )
        for n in (blocks, 1)
    )
    for name, a, b in zip(("y", "dq", "dk", "dv"), found, wanted, strict=True):
        assert np.abs(b).max() > 0.1, name
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
    hidden = jnp.ones_like(mask)  # what a block leaves out must be hidden
    assert (
        np.abs(
            ops.attention(q, k, v, hidden, 0.4, None, blocks)
            - ops.attention(q, k, v, hidden, 0.4, None)
        ).max()
        > 0.1
    )


@pytest.mark.parametrize(("kv_heads", "cap"), [(1, None), (2, 2.0)])
def test_attention_with_a_cache_is_that_over_all_slots(kv_heads, cap):
    """Of seven slots, two are cached and five are the asking ones; a row that sees none stays."""
    (q, k, v), mask, _ = attention_case(kv_heads, jnp.float32)
    mask = mask & (jnp.arange(7) - 2 <= jnp.arange(5)[:, None])
    front = (k[:, :2].swapaxes(1, 2), v[:, :2].swapaxes(1, 2), mask[:, :, :2])
    found = ops.attention_with_cache(q, k[:, 2:], v[:, 2:], *front, mask[:, :, 2:], 0.4, cap)
    wanted = plain_attention(q, k, v, mask, 0.4, cap)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_in_bfloat16(cap):
    arguments, mask, weights = attention_case(2, jnp.bfloat16)
    assert ops.attention(*arguments, mask, 0.4, cap).dtype == jnp.bfloat16
    found, wanted = (
        value_and_gradients(lambda q, k, v, f=f: f(q, k, v, mask, 0.4, cap), arguments, weights)
        for f in (ops.attention, plain_attention)
    )
    for name, a, b in zip(("y", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max(), err_msg=name)


def test_a_query_without_keys_stays_finite():
    """It gets the mean of all values; no gradient reaches its scores."""
    arguments, mask, weights = attention_case(2, jnp.float32)
    mask = jnp.zeros_like(mask)
    y, dq, dk, dv = value_and_gradients(
        lambda q, k, v: ops.attention(q, k, v, mask, 0.4, None), arguments, weights
    )
    mean = np.repeat(np.asarray(arguments[2]).mean(axis=1, keepdims=True), 5, axis=1)
    np.testing.assert_allclose(y, np.repeat(mean, 2, axis=2), atol=1e-6)
    assert not dq.any() and not dk.any()
    given = np.asarray(weights).reshape(2, 5, 2, 2, 8).sum(axis=(1, 3)) / 7
    np.testing.assert_allclose(dv, np.repeat(given[:, None], 7, axis=1), atol=1e-6)


# Projections


@pytest.mark.parametrize(("shape", "spec"), [((6, 5), "btd,df->btf"), ((6, 2, 3), "btd,dnh->btnh")])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_project_is_a_matrix_product(shape, spec, dtype):
    x, w, weights = normal(2, (2, 4, 6), shape, (2, 4, *shape[1:]))
    x, w = x.astype(dtype), w.astype(dtype)
    assert ops.project(x, w).dtype == dtype
    found = value_and_gradients(ops.project, (x, w), weights)
    wanted = value_and_gradients(
        lambda x, w: jnp.einsum(
            spec, *(a.astype(jnp.float32) for a in (x, w)), precision="highest"
        ),
        (x, w),
        weights,
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 if dtype == jnp.float32 else 0.05)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_projection_on_transposed_weights(dtype, rows):
    x, w, weights = normal(5, (1, rows, 6), (5, 6), (1, rows, 5))
    w = w.astype(dtype)
    found, wanted = (
        value_and_gradients(f, (x, w), weights)
        for f in (
            functools.partial(ops.project, transposed=True),
            lambda x, w: ops.project(x, w.T),
        )
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif("avx512_bf16" not in processor.flags(), reason="a CPU without bfloat16")
def test_a_cpu_multiplies_the_table_of_a_tied_head_in_bfloat16_where_it_is():
    """Otherwise every call would convert all of it to float32."""
    x, w = normal(6, (1, 3, 64), (512, 64))
    product = jax.jit(functools.partial(ops.project, transposed=True))
    text = product.lower(x, w.astype(jnp.bfloat16)).compile().as_text()
    assert "bf16[512,64]" in text and "f32[512,64]" not in text


@pytest.mark.parametrize("combine", ["factors", "products"])
@pytest.mark.parametrize("length", [2, 3])
def test_gated_low_rank_on_both_its_roads(combine, length):
    """Rows of at least E = 3 tokens sum their factors first; the update is the same."""
    x, a, b, gates, weights = normal(
        3, (2, length, 6), (3, 6, 2), (3, 2, 5), (2, 3), (2, length, 5)
    )

    def plain(x, a, b, gates):
        if combine == "factors":
            a = jnp.einsum("be,eir->bir", gates, a)
            b = jnp.einsum("be,ero->bro", gates, b)
            return 0.5 * jnp.einsum("bti,bir,bro->bto", x, a, b, precision="highest")
        return 0.5 * jnp.einsum("bti,eir,be,ero->bto", x, a, gates, b, precision="highest")

    def ours(x, a, b, gates):
        return ops.gated_low_rank(x, a, b, gates, combine, 0.5)

    arguments = (x, a, b, gates)
    found, wanted = (value_and_gradients(f, arguments, weights) for f in (ours, plain))
    for name, one, other in zip(("y", "x", "a", "b", "gates"), found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)
    turned = ops.gated_low_rank(x, a.swapaxes(0, 1), b, gates, combine, 0.5, input_first=True)
    np.testing.assert_allclose(turned, ours(*arguments), atol=2e-5)


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_every_token_may_have_gates_of_its_own(combine):
    x, a, b, gates = normal(4, (2, 3, 6), (4, 6, 2), (4, 2, 5), (2, 3, 4))
    found = ops.gated_low_rank(x, a, b, gates, combine, 0.5)
    for row in range(2):
        for slot in range(3):
            one = ops.gated_low_rank(
                x[row : row + 1, slot : slot + 1], a, b, gates[row : row + 1, slot], combine, 0.5
            )
            np.testing.assert_allclose(found[row, slot], one[0, 0], atol=2e-5)


# Masks


@pytest.mark.parametrize("window", [None, 2])
def test_branches_of_several_texts(window):
    """Text 0 with two branches, a text 1 with one, and two unused slots."""
    branch = [0, 0, 1, 1, 2, 0, 1, 0, 0]
    text = [0, 0, 0, 0, 0, 1, 1, 0, 0]
    position = [0, 1, 2, 3, 2, 0, 1, 0, 0]
    valid = [True] * 7 + [False] * 2
    arrays = [jnp.asarray([values]) for values in (valid, position, branch, text)]
    found = np.asarray(ops.branch_mask(*arrays[:3], window, arrays[3]))[0]
    seen = [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 4}, {5}, {5, 6}]
    if window:
        seen = [{0}, {0, 1}, {1, 2}, {2, 3}, {1, 4}, {5}, {5, 6}]
    assert [set(np.flatnonzero(row)) for row in found[:7]] == seen
    assert not found[:, 7:].any()
    one = np.asarray(ops.branch_mask(*arrays[:3], window))[0]  # of a row with one text
    assert one[5, 0] and not found[5, 0]


def test_products_of_float32_and_bfloat16_have_both_gradients_and_no_needless_one():
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    w = jax.random.normal(jax.random.key(1), (8, 6)).astype(jnp.bfloat16)

    def loss(x, w):
        return jnp.sum(jnp.sin(ops.project(x, w)))

    found, wanted = (jax.grad(loss, argnums=(0, 1))(x, one) for one in (w, w.astype(jnp.float32)))
    assert found[1].dtype == jnp.bfloat16
    for ours, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=0.05)
    products = [str(jax.make_jaxpr(jax.grad(loss, n))(x, w)).count("dot_general") for n in (0, 1)]
    assert products == [2, 3]  # frozen weights cost no product of their own
