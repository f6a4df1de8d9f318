"""The FLOPs of a step by formula, against a count of the real program."""

import jax
import numpy as np
import pytest

from lorage_jax.bench.counting import matmul_macs
from lorage_jax.config import GeneratorConfig, MeshConfig
from lorage_jax.data.batches import Batch, host_rows
from lorage_jax.hf.presets import SHAPES
from lorage_jax.models.layer import all_pairs
from lorage_jax.models.presets import with_layers
from lorage_jax.sharding import make_mesh
from lorage_jax.train import flops
from tests.programs import step_program


@pytest.mark.parametrize(
    ("edge", "combine", "rank"),
    [("tinyllama", "factors", 16), ("qwen2-1.5b", "products", 16), ("tinyllama", "factors", 0)],
)
def test_step_flops(edge, combine, rank):
    """At the paper's widths. The program counts one product more: it computes the attention's
    scores a second time for the gradient. On a CPU it would leave out hidden ones.
    """
    cloud, edge = with_layers(SHAPES["llama3-8b"], 2), with_layers(SHAPES[edge], 2)
    generator = GeneratorConfig(combine=combine, cloud_rank=rank)
    sizes = {"prompts": (2, 96), "queries": (4, 129)}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step, arguments, _ = step_program(cloud, edge, mesh, generator=generator, **sizes)
    with all_pairs():
        walked = 2 * matmul_macs(step.trace(*arguments).jaxpr)
    chunks = (host_rows(tokens=np.zeros(sizes[name], np.int32), mask=None) for name in sizes)
    batch = Batch(*((rows,) for rows in chunks))
    counted = flops.step_flops(generator, cloud, edge, batch)
    assert 0.995 < counted / walked < 1.0


def test_packed_rows_pay_for_their_own_pairs():
    """Texts see only themselves: two per row cost less than one of twice the length."""
    cloud, edge = with_layers(SHAPES["llama3-8b"], 2), with_layers(SHAPES["tinyllama"], 2)
    generator = GeneratorConfig(combine="products")

    def total(texts, packed):
        size, chunks = 120 // texts, []
        for slots in (120, 120 + 1):  # of a prompts' row, of a queries'
            text = np.stack([np.minimum(np.arange(slots) // size, texts - 1)] * 2)
            more = {"text": text} if packed else {}
            chunks.append((host_rows(tokens=text, mask=text >= 0, **more),))
        return flops.step_flops(generator, cloud, edge, Batch(*chunks))

    assert total(1, packed=True) == total(1, packed=False)
    # One more text per row: its meta tokens and half the pairs.
    pairs_of = {"cloud": (cloud, 122**2 - 2 * 62**2), "edge": (edge, 120**2 - 60**2 - 59**2)}
    pairs = sum(m.layers * 3 * 2 * m.heads * m.head_dim * n for m, n in pairs_of.values())
    meta = edge.layers * flops._layer_macs(cloud, 1, 0) * cloud.layers
    adapter = generator.cloud_rank * (
        2 * cloud.width + (cloud.heads + cloud.kv_heads) * cloud.head_dim
    )
    meta += 3 * edge.layers * adapter * cloud.layers
    assert total(2, packed=True) - total(1, packed=True) == 2 * 2 * (meta - pairs)
    # Factors are not summed if each token has its own gates.
    products, generator = total(2, packed=True), GeneratorConfig(combine="factors")
    assert total(2, packed=True) == products and total(1, packed=False) < total(1, packed=True)


def test_peak_of_all_devices(monkeypatch):
    assert flops.peak_flops() is None  # of a CPU
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(flops.PEAK_FLOPS, kind, 2e12)
    assert flops.peak_flops() == 16e12
