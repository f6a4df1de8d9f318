"""The arithmetic of a step by formula, against a walk over the program that runs."""

import jax
import numpy as np
import pytest

from lorage_jax.config import GeneratorConfig, MeshConfig
from lorage_jax.evaluate.flops import matmul_macs
from lorage_jax.evaluate.shapes import SHAPES, with_layers
from lorage_jax.sharding import make_mesh
from lorage_jax.train import arithmetic
from tests.programs import step_program


@pytest.mark.parametrize(
    ("edge", "combine"), [("tinyllama", "factors"), ("qwen2-1.5b", "products")]
)
def test_step_flops(edge, combine):
    """At the paper's widths. The program counts one product more: it computes the attention's
    scores a second time for the gradient.
    """
    cloud, edge = with_layers(SHAPES["llama3-8b"], 2), with_layers(SHAPES[edge], 2)
    generator, sizes = GeneratorConfig(combine=combine), {"prompts": (2, 96), "queries": (4, 129)}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step, arguments, _ = step_program(cloud, edge, mesh, generator=generator, **sizes)
    walked = 2 * matmul_macs(step.trace(*arguments).jaxpr)
    batch = {
        "prompt_tokens": (np.zeros(sizes["prompts"], np.int32),),
        "query_tokens": (np.zeros(sizes["queries"], np.int32),),
    }
    counted = arithmetic.step_flops(generator, cloud, edge, batch)
    assert 0.995 < counted / walked < 1.0


def test_peak_of_all_devices(monkeypatch):
    assert arithmetic.peak_flops() is None  # of a CPU
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(arithmetic.PEAK_FLOPS, kind, 2e12)
    assert arithmetic.peak_flops() == 16e12
