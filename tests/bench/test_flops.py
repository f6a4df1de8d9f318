"""Counted arithmetic equals the formulas."""

import pytest

from lorage_jax.bench.counting import matmul_macs
from lorage_jax.bench.flops import break_even
from lorage_jax.bench.programs import cloud_program, merge_programs, prefill_program
from lorage_jax.config import GeneratorConfig
from lorage_jax.methods.loramoe import LoraMoe, LoraMoeSettings
from lorage_jax.methods.mixlora import MixLora, MixLoraSettings
from tests.bench.shapes import TOKENS, layers_macs, tiny


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("layers", range(1, 6))
def test_prefill_against_the_formula(family, layers):
    config = tiny(family, layers)
    body, head = layers_macs(config, TOKENS), config.width * config.vocab_size
    for last, positions in ((False, TOKENS), (True, 1)):
        program = prefill_program(config, TOKENS, last=last, dtype="float32")
        assert matmul_macs(program) == body + positions * head


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_experts_beside_the_edge_against_the_formula(family):
    """All of them count, with their routers; MixLoRA runs the base's down projection once."""
    config = tiny(family, 3)
    d, f = config.width, config.ffn_width
    bare = matmul_macs(prefill_program(config, TOKENS, dtype="float32"))
    ours = LoraMoeSettings()
    moe = ours.experts * (3 * ours.rank * (d + f) + 2 * d + f)
    mix = MixLoraSettings()
    out = 2 * config.heads * config.head_dim + 2 * config.kv_heads * config.head_dim
    attention = mix.rank * (4 * d + out)
    mixture = mix.experts * (3 * mix.rank * (d + f) + d)  # and the router
    for method, each in ((LoraMoe, moe), (MixLora, attention + mixture)):
        program = prefill_program(config, TOKENS, dtype="float32", method=method)
        assert matmul_macs(program) - bare == config.layers * TOKENS * each


@pytest.mark.parametrize("router_scope", ["shared", "per_layer"])
def test_the_cloud_pass_against_the_formula(router_scope):
    """With meta tokens, no head, adapters on q and v, and the router's two matrices."""
    cloud, edge = tiny("llama", 3), tiny("gemma2", 4)
    config = GeneratorConfig(cloud_rank=8, router_width=20, router_scope=router_scope)
    program = cloud_program(config, cloud, edge, TOKENS, "float32")
    slots = TOKENS + edge.layers
    out = (cloud.heads + cloud.kv_heads) * cloud.head_dim
    adapters = cloud.layers * slots * 8 * (2 * cloud.width + out)
    router = edge.layers * 20 * (cloud.width + 8)
    assert matmul_macs(program) == layers_macs(cloud, slots) + adapters + router


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_the_merge_against_the_formula(combine):
    edge = tiny("llama", 3)
    config = GeneratorConfig(experts=4, top_k=2, rank=2, combine=combine)
    macs = sum(map(matmul_macs, merge_programs(config, edge, "float32")))
    matrix = edge.width * edge.ffn_width
    if combine == "factors":
        expected = 2 * matrix + 4 * 2 * (edge.width + edge.ffn_width)
    else:  # the experts of the two open gates concatenated, nothing summed
        expected = 2 * 2 * matrix
    assert macs == 3 * 3 * expected


def test_break_even_is_the_first_request_that_pays():
    assert break_even(100, {"with_prompt": 60, "specialized": 10}) == 2
    assert break_even(101, {"with_prompt": 60, "specialized": 10}) == 3
