"""Arithmetic of a traced program: exact for matrix products, or as the compiler counts it.

`matmul_macs` walks the program. `compiled_flops` asks the compiler, which adds all elementwise work
(2 FLOPs per multiply-accumulate) and depends on the device: a CPU widens bfloat16, a GPU calls
libraries. The two check each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun


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
