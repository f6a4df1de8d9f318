"""What the parity ladder, which runs in float32, cannot see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax import ops


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_gates_weigh_in_float32_under_bfloat16_weights(combine):
    """A gate that bfloat16 cannot tell from 1 still counts: 255 becomes 256."""
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
