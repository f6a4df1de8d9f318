"""Arithmetic and memory that one request costs the edge, counted on the steps of `generate`.

Its padding to buckets is left out, but for that of a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from lorage_jax.bench.counting import compiled_flops
from lorage_jax.bench.memory import cache_bytes
from lorage_jax.evaluate.answers import encoded, turns
from lorage_jax.infer.gates import row_gates
from lorage_jax.infer.prefixes import unread_part
from lorage_jax.infer.steps import next_logits, read_prompts
from lorage_jax.methods.method import Method, Placement
from lorage_jax.models.bits import cache_dtype, program_params
from lorage_jax.models.model import Model
from lorage_jax.world.samples import WorldSample
from lorage_jax.world.seconds import median_group, new_tokens


@dataclass(frozen=True)
class Costs:
    """The costs of one request, after its prompt was prepared and placed.

    Attributes:
        flops_per_request: FLOPs of the prefill and of all new tokens, by the compiler.
        parameter_bytes: the edge's weights, and experts with their routers beside it.
        cache_bytes: keys and values of all slots, those of a prefix included.
    """

    flops_per_request: float
    parameter_bytes: int
    cache_bytes: int


def method_costs(
    methods: Mapping[str, Method], edge: Model, sample: WorldSample
) -> dict[str, dict[str, Any]]:
    """`Costs` of each method, for a request of the prompt of median length.

    Methods whose programs are the same, such as all that merge, share their compilation.
    """
    known: dict[str, float] = {}
    return {name: asdict(_costs(method, edge, sample, known)) for name, method in methods.items()}


def _costs(method: Method, edge: Model, sample: WorldSample, known: dict[str, float]) -> Costs:
    record, new = median_group(edge, sample)[0], new_tokens(edge, sample)
    (ready,) = method.prepare([record.system])
    placement = method.place(edge, [ready])
    model = placement.model
    (row,) = encoded(model, [turns(record.user, ready)])
    flops = 0.0
    for program, count in zip(_programs(placement, row, new), (1, new - 1), strict=True):
        text = str(program)
        if text not in known:
            known[text] = compiled_flops(program)
        flops += count * known[text]
    held = sum(x.nbytes for x in jax.tree.leaves((model.params, placement.pool)))
    dtype = jnp.dtype(cache_dtype(program_params(model.params))).name
    slots = _front(placement) + len(row) + new
    return Costs(flops, held, cache_bytes(model.config, slots, dtype))


def _programs(placement: Placement, row: list[int], new: int) -> tuple[ClosedJaxpr, ClosedJaxpr]:
    """The prefill of a row, and the decoding of one token."""
    model, prefixes = placement.model, placement.prefix_rows(1)
    unread, past = ([row], None) if prefixes is None else unread_part(prefixes, [row])
    pool, gates = row_gates(model, placement.cards, placement.pool, 1)
    params = program_params(model.params)

    def read(params, tokens, past, pool, gates):
        return read_prompts(model.config, params, tokens, None, new, pool, gates, past)

    def go_on(params, token, cache, pool, gates):
        return next_logits(model.config, params, token, None, cache, pool, gates)

    prompt = np.asarray(unread, np.int32)
    cache = jax.eval_shape(read, params, prompt, past, pool, gates)[1]
    return (
        jax.make_jaxpr(read)(params, prompt, past, pool, gates),
        jax.make_jaxpr(go_on)(params, prompt[:, :1], cache, pool, gates),
    )


def _front(placement: Placement) -> int:
    """The slots of vectors in front of a request; tokens in front are part of its row."""
    prefixes = placement.prefix_rows(1)
    return 0 if prefixes is None or prefixes[0].tokens else prefixes[0].slots
