"""The cloud's states of a prompt do not depend on other prompts in the batch or row."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.bench.counting import matmul_macs
from lorage_jax.buckets import left_pad
from lorage_jax.config import GeneratorConfig, MeshConfig
from lorage_jax.data.batches import Rows
from lorage_jax.data.packing import pack
from lorage_jax.generator.meta_tokens import CloudReader, Prompts, adapter_leaves
from lorage_jax.hf.family import family_decoder
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.sharding import Layout, make_mesh

SIZES = {"vocab_size": 97, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48}
EDGE_LAYERS = 3


@pytest.mark.parametrize(
    ("hidden_layer", "window", "kernels"),
    [(None, None, False), (0, None, False), (None, 8, False), (None, None, True), (None, 8, True)],
)
def test_packed_prompts_are_read_as_alone(monkeypatch, hidden_layer, window, kernels):
    """Also past a window of 8 tokens, though meta tokens stand apart from their prompts; and by a
    TPU's kernels, where they can.
    """
    monkeypatch.setattr(Layout, "flash", kernels)
    layout = Layout(make_mesh(MeshConfig(), jax.devices()[:1]))
    cloud = family_decoder("llama", **SIZES)
    if window:
        cloud = dataclasses.replace(cloud, window=window, sliding=(True, False))
    config = GeneratorConfig(hidden_layer=hidden_layer, dropout=0.0)
    rng, keys = np.random.default_rng(0), jax.random.split(jax.random.key(0), 2)
    params = jax.tree.map(
        lambda x: x + jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype),
        initialise(model_leaves(cloud), keys[0]),
    )
    adapters = initialise(adapter_leaves(config, cloud), keys[1])
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    meta = jnp.asarray(rng.standard_normal((EDGE_LAYERS, 32)), jnp.float32)
    prompts = [rng.integers(0, 97, n).tolist() for n in (21, 3, 14, 9, 30, 1)]

    reader = CloudReader(config, cloud, layout=layout)
    trained = {"meta": meta, "adapters": adapters}

    @partial(jax.jit, static_argnums=0)
    def read(per_row, **arrays):
        return reader.read(params, trained, Prompts((Rows(**arrays),), per_row))

    tokens, mask = left_pad(prompts, 32)
    alone = read(1, tokens=tokens, mask=mask)
    order, arrays = pack(prompts, 2, smallest=16, largest=200, pad=0)
    packed = read(3, **arrays)
    assert packed.shape == (6, EDGE_LAYERS, 32) and np.abs(packed).max() > 0.5
    np.testing.assert_allclose(packed, alone[order.ravel()], atol=2e-5)


@pytest.mark.parametrize(("hidden_layer", "window"), [(None, None), (0, 8)])
@pytest.mark.parametrize("packed", [False, True])
def test_without_adapters_only_meta_tokens_have_a_backward_pass(packed, hidden_layer, window):
    """Values and gradients are those of one pass over prompt and meta tokens; the arithmetic is
    one pass over the prompt and three over the meta tokens.
    """
    layout = Layout(make_mesh(MeshConfig(), jax.devices()[:1]))
    cloud = family_decoder("llama", **SIZES)
    if window:
        cloud = dataclasses.replace(cloud, window=window, sliding=(True, False))
    config = GeneratorConfig(hidden_layer=hidden_layer, dropout=0.0, cloud_rank=0)
    rng = np.random.default_rng(0)
    params = initialise(model_leaves(cloud), jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), params)
    meta = jnp.asarray(rng.standard_normal((EDGE_LAYERS, 32)), jnp.float32)
    prompts = [rng.integers(0, 97, n).tolist() for n in (61, 43, 54, 59)]
    tokens, mask = left_pad(prompts, 64)
    rows = {"tokens": tokens, "mask": mask}
    if packed:
        _, rows = pack(prompts, 2, smallest=16, largest=200, pad=0)
    given = Prompts((Rows(**rows),), 2 if packed else 1)
    weights = jnp.asarray(rng.standard_normal((4, EDGE_LAYERS, 32)), jnp.float32)

    def slope(trains):
        reader = CloudReader(config, cloud, remat="full", layout=layout, trains=trains)

        def value(meta):
            read = reader.read(params, {"meta": meta, "adapters": {}}, given)
            return jnp.sum(weights * read), read

        return jax.jit(jax.value_and_grad(value, has_aux=True))

    ((_, wanted), wanted_slope), ((_, found), found_slope) = slope(False)(meta), slope(True)(meta)
    for one, other in ((found, wanted), (found_slope, wanted_slope)):
        assert np.linalg.norm(one - other) < 1e-6 * np.linalg.norm(other)
    assert np.abs(wanted_slope).max() > 1
    macs = [matmul_macs(slope(trains).trace(meta).jaxpr) for trains in (False, True)]
    assert macs[1] < 0.45 * macs[0]
