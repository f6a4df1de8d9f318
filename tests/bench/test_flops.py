"""Counted arithmetic is what the formulas say, and what the paper says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

from lorage_jax.bench import flops
from lorage_jax.cli import main
from lorage_jax.config import GeneratorConfig
from lorage_jax.hf.config import to_hf_config
from lorage_jax.models.presets import SHAPES, plain_decoder, with_layers

TOKENS = 24


def tiny(family, layers):
    """Head size other than width / heads; Gemma's with its alternating windows."""
    fields = {"tied_head": family == "gemma2", "head_dim": 16}
    if family == "gemma2":
        sliding = ((True, False) * layers)[:layers]
        fields |= {"window": 6, "sliding": sliding, "attn_softcap": 4.0}
    sizes = {"vocab_size": 97, "width": 48, "heads": 4, "kv_heads": 2, "ffn_width": 80}
    return plain_decoder(family, layers=layers, **sizes, **fields)


def projections(config):
    """MACs a token of one layer's matrices."""
    heads = 2 * config.heads + 2 * config.kv_heads
    return config.width * (heads * config.head_dim + 3 * config.ffn_width)


def attention(config, tokens):
    """Scores and weighted values of one layer, over all pairs."""
    return 2 * tokens**2 * config.heads * config.head_dim


def layers_macs(config, tokens):
    return config.layers * (tokens * projections(config) + attention(config, tokens))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("layers", range(1, 6))
def test_prefill_against_the_formula(family, layers):
    config = tiny(family, layers)
    body, head = layers_macs(config, TOKENS), config.width * config.vocab_size
    for output, positions in (("logits", TOKENS), ("last", 1)):
        program = flops.prefill_program(config, TOKENS, output=output, dtype="float32")
        assert flops.matmul_macs(program) == body + positions * head


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_compiler_counts_every_layer_as_much(family):
    """Its own count of a scan's body is once; elementwise work is large in a tiny model."""
    counts, macs = [], []
    for layers in (1, 2, 5):
        program = flops.prefill_program(
            tiny(family, layers), TOKENS, output="logits", dtype="float32"
        )
        counts.append(flops.compiled_flops(program) / 2)
        macs.append(flops.matmul_macs(program))
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
    assert flops.matmul_macs(traced) == 5 * 7 * 2 * 3 * 3
    assert flops.compiled_flops(traced) / 2 == pytest.approx(5 * 7 * 2 * 3 * 3, rel=0.5)


def test_a_loop_of_unknown_length_is_refused():
    def program(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="while"):
        flops.matmul_macs(jax.make_jaxpr(program)(jnp.ones((2, 2))))


def test_the_costliest_branch_counts():
    def program(x, y):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: (x @ x) @ y)

    traced = jax.make_jaxpr(program)(np.ones((2, 2)), np.ones((2, 5)))
    assert flops.matmul_macs(traced) == 2 * 2 * 2 + 2 * 2 * 5


def test_what_a_shard_computes_counts_for_every_shard():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("rows")
    product = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    assert (
        flops.matmul_macs(jax.make_jaxpr(product)(np.ones((16, 3)), np.ones((3, 5)))) == 16 * 3 * 5
    )


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
    assert flops.matmul_macs(traced) == 8 * 3 * 5


@pytest.mark.parametrize("router_scope", ["shared", "per_layer"])
def test_the_cloud_pass_against_the_formula(router_scope):
    """Meta tokens ride along, no head, adapters on q and v, two matrices of the router."""
    cloud, edge = tiny("llama", 3), tiny("gemma2", 4)
    config = GeneratorConfig(cloud_rank=8, router_width=20, router_scope=router_scope)
    program = flops.cloud_program(config, cloud, edge, TOKENS, "float32")
    slots = TOKENS + edge.layers
    out = (cloud.heads + cloud.kv_heads) * cloud.head_dim
    adapters = cloud.layers * slots * 8 * (2 * cloud.width + out)
    router = edge.layers * 20 * (cloud.width + 8)
    assert flops.matmul_macs(program) == layers_macs(cloud, slots) + adapters + router


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_the_merge_against_the_formula(combine):
    edge = tiny("llama", 3)
    config = GeneratorConfig(experts=4, top_k=2, rank=2, combine=combine)
    macs = sum(map(flops.matmul_macs, flops.merge_programs(config, edge, "float32")))
    matrix = edge.width * edge.ffn_width
    if combine == "factors":
        expected = 2 * matrix + 4 * 2 * (edge.width + edge.ffn_width)
    else:  # the experts of the two open gates side by side, nothing summed
        expected = 2 * 2 * matrix
    assert macs == 3 * 3 * expected


def test_break_even_is_the_first_request_that_pays():
    assert flops.break_even(100, {"with_prompt": 60, "specialized": 10}) == 2
    assert flops.break_even(101, {"with_prompt": 60, "specialized": 10}) == 3


def lorage(*args):
    return main([str(arg) for arg in args])


def folder(tmp_path, config, name="edge"):
    """Only a config.json: no weights, no tokenizer."""
    path = tmp_path / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(to_hf_config(config, "bfloat16")))
    return path


def test_table_13(tmp_path, capsys):
    """The paper's inference column from a folder that holds only config.json."""
    file = tmp_path / "flops.json"
    edge = folder(tmp_path, SHAPES["qwen2-1.5b"])
    tokens = ("--input-tokens", 100, "--instruction-tokens", 200)
    assert lorage("bench", "flops", "--edge-config", edge, *tokens, "--json", file) == 0
    result = json.loads(file.read_text())
    assert result["macs_with_prompt"] == pytest.approx(4.708e11, rel=1e-3)
    assert result["macs_specialized"] == pytest.approx(1.552e11, rel=1e-3)
    # LLaMA3-8B: 6.98e9 weights in its layers, 200 + 28 slots.
    assert result["macs_cloud_pass"] == pytest.approx(6.98e9 * 228, rel=0.03)
    assert result["break_even_requests"] == 6
    assert result["compiled_flops_with_prompt"] / 2 == pytest.approx(4.708e11, rel=0.03)
    assert result["compiled_flops_specialized"] / 2 == pytest.approx(1.552e11, rel=0.03)
    assert result["compiled_flops_cloud_pass"] / 2 == pytest.approx(1.6066e12, rel=0.03)
    assert result["macs_last_logit_with_prompt"] == pytest.approx(
        4.708e11 - 299 * 1536 * 151_936, rel=1e-3
    )
    assert (result["shape"], result["cloud"]) == ("qwen2-1.5b", "llama3-8b")
    shown = capsys.readouterr().out
    assert shown.count("4.708e+11") == 2 and shown.count("1.552e+11") == 2  # ours, the paper's


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--shape", "qwen2-1.5b"), {4.708e11, 1.552e11}),
        (("--shape", "qwen2-1.5b", "--layers", 28), {4.708e11, 1.552e11}),
        (("--shape", "qwen2-1.5b", "--layers", 27), set()),
        (("--shape", "qwen2-1.5b", "--input-tokens", 101), set()),
        (("--shape", "qwen2-1.5b", "--instruction-tokens", 100), set()),
        (("--shape", "tinyllama"), set()),
    ],
)
def test_the_papers_figures_stand_only_beside_its_own_setting(
    tmp_path, monkeypatch, args, expected
):
    monkeypatch.setattr(flops, "bench_flops", lambda *args, **kwargs: {})
    file = tmp_path / "out.json"
    assert lorage("bench", "flops", *args, "--json", file) == 0
    result = json.loads(file.read_text())
    assert {value for name, value in result.items() if name.startswith("paper")} == expected


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("flops", "--input-tokens", 0), "--input-tokens is 0; expected 1 or more"),
        (("flops", "--instruction-tokens", -1), "--instruction-tokens is -1"),
        (("flops", "--layers", 0), "--layers is 0"),
        (("latency", "--new-tokens", 1), "new_tokens is 1; expected 2 or more"),
        (("latency", "--repeats", 0), "--repeats is 0"),
        (("latency", "--input-tokens", 1900), "are 2132; the edge's context is 2048"),
        (("flops", "--input-tokens", 1849), "are 2049; the edge's context is 2048"),
        (
            ("flops", "--shape", "qwen2-1.5b", "--instruction-tokens", 8165),
            "8165 instruction + 28 meta tokens are 8193; the cloud's context is 8192",
        ),
        (("flops", "--edge-config", "nowhere"), "nowhere is not a folder"),
        (("flops", "--cloud-config", "nowhere"), "nowhere is not a folder"),
        (("flops", "--edge-config", "."), "no config.json"),
        (("flops", "--shape", "gemma2-2b", "--edge-config", "."), "give one of them"),
        (("flops", "--repeats", 7), "does not read --repeats"),
        (("merge", "--cloud-config", "."), "does not read --cloud-config"),
        (("score", "--model", ".", "--layers", 2), "does not read --layers"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    assert lorage("bench", *args) == 1
    error = capsys.readouterr().err
    assert error.startswith("lorage: ") and says in error
    assert not list(tmp_path.iterdir())


def test_a_deeper_edge_without_a_pattern_is_refused(tmp_path, capsys):
    config = dataclasses.replace(tiny("gemma2", 4), sliding=(False, False, False, True))
    edge = folder(tmp_path, config)
    assert lorage("bench", "flops", "--edge-config", edge, "--layers", 6) == 1
    assert "expected at most 4" in capsys.readouterr().err
    assert with_layers(config, 2).layers == 2
