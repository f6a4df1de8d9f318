"""Arithmetic of a request with and without the system prompt, and of the cloud pass (Table 13).

Counted in multiply-accumulates (MACs) on the programs themselves, at true shapes and without
weights. As the paper counts: logits at every position, attention over all pairs.

Two counts that check each other. `matmul_macs` walks the traced program and is exact for its
matrix products. `compiled_flops` asks the compiler, which adds everything elementwise (2 FLOPs a
MAC) and depends on the device: a CPU widens bfloat16, a GPU calls libraries. Hence the first one is
the headline.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.generator import _specialize, trained_leaves
from lorage_jax.generator.merge import _assemble, _compiled
from lorage_jax.generator.pool import PROJECTIONS, make_pool, pool_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import structs


def bench_flops(
    edge: ModelConfig,
    cloud: ModelConfig,
    generator: GeneratorConfig,
    *,
    input_tokens: int,
    instruction_tokens: int,
    dtype: str,
) -> dict[str, Any]:
    """MACs of one request that carries the prompt (`with_prompt`: base, LoRA) and of one that does
    not (`specialized`); of the cloud pass, and after how many requests it has paid for itself.

    `last_logit` counts the head at the last position only, which is what `generate` computes.
    `compiled_flops` are the compiler's own.
    """
    lengths = {"with_prompt": input_tokens + instruction_tokens, "specialized": input_tokens}
    programs = {
        name: prefill_program(edge, tokens, output="logits", dtype=dtype)
        for name, tokens in lengths.items()
    }
    programs["cloud_pass"] = cloud_program(generator, cloud, edge, instruction_tokens, dtype)
    macs = {name: matmul_macs(program) for name, program in programs.items()}
    flops = {name: compiled_flops(program) for name, program in programs.items()}
    last = {
        name: matmul_macs(prefill_program(edge, tokens, output="last", dtype=dtype))
        for name, tokens in lengths.items()
    }
    without = dataclasses.replace(generator, cloud_rank=0)
    bare_cloud = cloud_program(without, cloud, edge, instruction_tokens, dtype)
    return {
        "layers": edge.layers,
        "input_tokens": input_tokens,
        "instruction_tokens": instruction_tokens,
        "unit": "multiply-accumulates, logits at every position, attention over all pairs",
        **{f"macs_{name}": value for name, value in macs.items()},
        "ratio_with_prompt_to_specialized": macs["with_prompt"] / macs["specialized"],
        "break_even_requests": break_even(macs["cloud_pass"], macs),
        "macs_cloud_adapters": macs["cloud_pass"] - matmul_macs(bare_cloud),
        "macs_merge": sum(map(matmul_macs, merge_programs(generator, edge, dtype))),
        **{f"macs_last_logit_{name}": value for name, value in last.items()},
        "break_even_requests_last_logit": break_even(macs["cloud_pass"], last),
        **{f"compiled_flops_{name}": value for name, value in flops.items()},
        "compiled_flops_over_2_macs": max(flops[name] / 2 / macs[name] for name in macs),
    }


def break_even(cloud_pass: int, macs: dict[str, int]) -> int:
    """The number of requests whose savings are at least the cloud pass."""
    return math.ceil(cloud_pass / (macs["with_prompt"] - macs["specialized"]))


# Programs, as they are run, traced on shapes


def prefill_program(config: ModelConfig, tokens: int, *, output: str, dtype: str) -> ClosedJaxpr:
    """One row of `tokens` tokens to logits at every position, or to the `last` one's."""

    def prefill(params, row):
        return Decoder(config).apply({"params": params}, row, output=output)

    row = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    return jax.make_jaxpr(prefill)(structs(model_leaves(config), dtype), row)


def cloud_program(
    generator: GeneratorConfig, cloud: ModelConfig, edge: ModelConfig, tokens: int, dtype: str
) -> ClosedJaxpr:
    """A prompt of `tokens` tokens to gates: cloud with adapters and meta tokens, router; no head.

    The trained parts are float32.
    """
    return _specialize.trace(
        generator,
        cloud,
        structs(model_leaves(cloud), dtype),
        structs(trained_leaves(generator, cloud, edge), "float32"),
        structs(statistics_leaves(generator, edge.layers), "float32"),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens), bool),
    ).jaxpr


def merge_programs(generator: GeneratorConfig, edge: ModelConfig, dtype: str) -> list[ClosedJaxpr]:
    """Experts to one LoRA, and that into the weights: what `merge` runs."""
    pool = make_pool(structs(pool_leaves(generator, edge), "float32"), generator)
    gates = jax.ShapeDtypeStruct((edge.layers, generator.experts), jnp.float32)
    rank = generator.rank * (1 if generator.combine == "factors" else generator.top_k)
    assembled = _assemble.trace(pool, gates, rank)
    weights = structs(model_leaves(edge), dtype)["layers"]
    ffn = {name: weights[name] for name in PROJECTIONS}
    placed = tuple((name, None) for name in PROJECTIONS)  # wherever: nothing is run
    return [assembled.jaxpr, _compiled(placed, False).trace(ffn, assembled.out_info).jaxpr]


# Counting


def matmul_macs(program: ClosedJaxpr) -> int:
    """Multiply-accumulates of all matrix products: a loop's body as often as it runs, and of a
    condition's branches (layers that slide or not, chunks without a target) the costliest.
    """
    return _matmul_macs(program.jaxpr)


def _matmul_macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(summed[i] for i in contracted)
            continue
        parts = [_matmul_macs(part.jaxpr) for part in _parts(equation)]
        if any(parts) and name == "while":
            raise ValueError("matrix products in a while: how often they run is not known")
        inner = max(parts, default=0) if name == "cond" else sum(parts)
        total += inner * _times(equation) if inner else 0
    return total


def _times(equation: Any) -> int:
    """How often an operation runs the program inside it."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return params["length"]
        case "pallas_call":  # written for one block
            return math.prod(params["grid_mapping"].grid)
        case "shard_map":  # written for one shard
            axes = params.get("newly_manual_axes", params.get("manual_axes"))
            return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def compiled_flops(program: ClosedJaxpr) -> float:
    """FLOPs by the compiler's cost analysis, scans in full.

    The analysis counts a loop's body once, so that each scan's body is compiled by itself too:
    total(program) = counted(program) + sum over scans (length total(body) - counted(body)).
    """
    return _compiled_flops(program)[1]


def _compiled_flops(program: ClosedJaxpr) -> tuple[float, float]:
    """(bodies once, bodies as often as they run)."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals]
    compiled = jax.jit(jaxpr_as_fun(program)).lower(*shapes).compile()
    once = total = compiled.cost_analysis()["flops"]
    for scan in _scans(program.jaxpr):
        body_once, body_total = _compiled_flops(scan.params["jaxpr"])
        total += scan.params["length"] * body_total - body_once
    return once, total


def _scans(jaxpr: Any) -> Iterator[Any]:
    """The outermost scans, those inside called functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        else:
            for part in _parts(equation):
                yield from _scans(part.jaxpr)


def _parts(equation: Any) -> Iterator[ClosedJaxpr]:
    """The programs that an operation runs: a loop's body, a called function, the branches."""
    for value in equation.params.values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part
            elif isinstance(part, Jaxpr):  # remat's is not closed
                yield ClosedJaxpr(part, ())
