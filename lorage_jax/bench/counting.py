"""Counts the arithmetic of a traced program in two ways, which check each other.

`matmul_macs` walks the program and counts matrix products exactly. `compiled_flops` asks the
compiler, which includes all elementwise work (2 FLOPs per multiply-accumulate) and depends on the
device: a CPU widens bfloat16, a GPU calls libraries, of which the compiler does not see attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from jax.extend.core import jaxpr_as_fun

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr

# Products of queries' and keys' size in cuDNN's attention, as many as without its kernels: scores
# and outputs, and the slopes of both factors of either. That it computes scores again is its own.
KERNELS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}


def matmul_macs(program: ClosedJaxpr) -> int:
    """Multiply-accumulates of all matrix products.

    The body of a loop counts as often as it runs. Of the branches of a condition (sliding or full
    attention, chunks with or without a target), the most expensive one counts.
    """
    return _matmul_macs(program)


def _matmul_macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(summed[i] for i in contracted)
            continue
        if name in KERNELS:
            q, k = (x.aval.shape for x in equation.invars[:2])  # [B, T, N, H], [B, S, K, H]
            total += KERNELS[name] * math.prod(q) * k[1]
            continue
        parts = [_matmul_macs(part) for part in _parts(equation)]
        if any(parts) and name == "while":
            raise ValueError("matrix products in a while loop: the number of its runs is unknown")
        inner = max(parts, default=0) if name == "cond" else sum(parts)
        total += inner * _times(equation) if inner else 0
    return total


def _times(equation: Any) -> int:
    """The number of times that an operation runs the program inside it."""
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
    """FLOPs by the compiler's cost analysis, with every step of a scan counted.

    The analysis counts a loop's body once, so the body of each scan is also compiled by itself:
    total(program) = counted(program) + sum over scans (length * total(body) - counted(body)).
    """
    return _compiled_flops(program)[1]


def _compiled_flops(program: ClosedJaxpr) -> tuple[float, float]:
    """FLOPs with each scan body counted once, and with each counted as often as it runs."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals]
    compiled = jax.jit(jaxpr_as_fun(program)).lower(*shapes).compile()
    once = total = (compiled.cost_analysis() or {})["flops"]
    for scan in _scans(program):
        body_once, body_total = _compiled_flops(scan.params["jaxpr"])
        total += scan.params["length"] * body_total - body_once
    return once, total


def _scans(jaxpr: Any) -> Iterator[Any]:
    """The outermost scans, including those in called functions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        else:
            for part in _parts(equation):
                yield from _scans(part)


def _parts(equation: Any) -> Iterator[Any]:
    """The programs inside an operation: a loop's body, a called function, branches.

    They are known by their equations: JAX 0.11 has one class for closed and open programs.
    """
    for value in equation.params.values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if hasattr(part, "eqns"):
                yield part
