"""Parameters as a module is given them."""

import jax
import jax.numpy as jnp
import pytest

from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import layer_leaves, model_leaves
from tests.bench.shapes import tiny


@pytest.mark.parametrize("place", ["final_norm", "layers"])
def test_a_parameter_of_another_shape_is_told(place):
    config = tiny("llama", 2)
    decoder, tokens = Decoder(config), jnp.zeros((1, 4), jnp.int32)
    params = decoder.init(jax.random.key(0), tokens)["params"]
    assert set(params) == {*model_leaves(config), "layers"}
    assert set(params["layers"]) == set(layer_leaves(config))
    part, name = (params, place) if place == "final_norm" else (params["layers"], "q")
    part[name] = jnp.concatenate([part[name], part[name]], axis=-1)
    with pytest.raises(ValueError, match=rf"the parameter {name} is .*; expected"):
        decoder.apply({"params": params}, tokens)
