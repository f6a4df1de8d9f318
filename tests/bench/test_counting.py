"""Counting rules: loops, branches, shards and kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

from lorage_jax.bench.counting import compiled_flops, matmul_macs
from lorage_jax.bench.programs import prefill_program
from tests.bench.shapes import TOKENS, tiny


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_compiler_counts_every_layer_as_much(family):
    """It counts the body of a scan once itself; elementwise work is large in a tiny model."""
    counts, macs = [], []
    for layers in (1, 2, 5):
        program = prefill_program(tiny(family, layers), TOKENS, dtype="float32")
        counts.append(compiled_flops(program) / 2)
        macs.append(matmul_macs(program))
    for count, exact in zip(counts, macs, strict=True):
        assert exact < count < 1.25 * exact
    assert counts[2] - counts[1] == pytest.approx(3 * (counts[1] - counts[0]), rel=0.02)


def test_a_pair_of_nested_scans():
    def inner(x, w):
        return x @ w, None

    def outer(x, w):
        return jax.lax.scan(inner, x, w)[0], None

    def program(x, w):
        return jax.lax.scan(outer, x, w)[0]

    traced = jax.make_jaxpr(program)(jnp.zeros((2, 3)), jnp.zeros((5, 7, 3, 3)))
    assert matmul_macs(traced) == 5 * 7 * 2 * 3 * 3
    assert compiled_flops(traced) / 2 == pytest.approx(5 * 7 * 2 * 3 * 3, rel=0.5)


def test_a_loop_of_unknown_length_is_refused():
    def program(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="while"):
        matmul_macs(jax.make_jaxpr(program)(jnp.ones((2, 2))))


def test_the_costliest_branch_counts():
    def program(x, y):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: (x @ x) @ y)

    traced = jax.make_jaxpr(program)(np.ones((2, 2)), np.ones((2, 5)))
    assert matmul_macs(traced) == 2 * 2 * 2 + 2 * 2 * 5


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_of_cudnn_counts_as_its_products(monkeypatch, heads):
    """Traced, not compiled: that needs an NVIDIA GPU."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    q, k, v = (
        jax.ShapeDtypeStruct((2, length, n, 16), jnp.bfloat16)
        for length, n in zip((24, 32, 32), (heads[0], heads[1], heads[1]), strict=True)
    )

    def counts(implementation):
        def attend(q, k, v):
            mask = jnp.ones((2, 1, 24, 32), bool)
            y = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)
            return y.astype(jnp.float32).sum()

        forward = matmul_macs(jax.make_jaxpr(attend)(q, k, v))
        return forward, matmul_macs(jax.make_jaxpr(jax.grad(attend, (0, 1, 2)))(q, k, v))

    assert counts("cudnn") == counts("xla")
    assert counts("cudnn")[0] == 2 * 2 * 24 * 32 * heads[0] * 16


def test_what_a_shard_computes_counts_for_every_shard():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("rows")
    product = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    assert matmul_macs(jax.make_jaxpr(product)(np.ones((16, 3)), np.ones((3, 5)))) == 16 * 3 * 5


def test_a_kernel_counts_every_block():
    def kernel(x, y, out):
        @pl.when(pl.program_id(0) >= 0)
        def _():
            out[...] = x[...] @ y[...]

    call = pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[pl.BlockSpec((2, 3), lambda i: (i, 0)), pl.BlockSpec((3, 5), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((2, 5), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((8, 5), np.float32),
    )
    traced = jax.make_jaxpr(call)(np.ones((8, 3), np.float32), np.ones((3, 5), np.float32))
    assert matmul_macs(traced) == 8 * 3 * 5
