"""Programs of a specialisation and a request, traced on shapes without making weights.

On every device, their attention is over all pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from lorage_jax.bench.routed import routed_pool
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.generator import compiled_gates, trained_leaves
from lorage_jax.generator.merge import compiled_assemble, compiled_merge
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.methods.routed import RoutedMethod
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.layer import all_pairs
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import structs

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr


@all_pairs()
def prefill_program(
    config: ModelConfig,
    tokens: int,
    *,
    dtype: str,
    last: bool = False,
    method: type[RoutedMethod] | None = None,
) -> ClosedJaxpr:
    """Prefill of one row of `tokens` tokens, with logits at every position or only the `last`.

    With a `method`, its experts and routers stand beside the model, float32, by its own settings.
    """
    pool = None
    if method is not None:
        pool = routed_pool(method, config, lambda leaves: structs(leaves, "float32"))

    def prefill(params, row, pool):
        return Decoder(config).apply({"params": params}, row, pool=pool, last=last).logits

    row = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    return jax.make_jaxpr(prefill)(structs(model_leaves(config), dtype), row, pool)


@all_pairs()
def cloud_program(
    generator: GeneratorConfig, cloud: ModelConfig, edge: ModelConfig, tokens: int, dtype: str
) -> ClosedJaxpr:
    """The program that turns a prompt of `tokens` tokens into gates.

    It runs the cloud with adapters and meta tokens, and the router, but no head. Trained parts are
    float32.
    """
    return compiled_gates.trace(
        generator,
        cloud,
        structs(model_leaves(cloud), dtype),
        structs(trained_leaves(generator, cloud, edge), "float32"),
        structs(statistics_leaves(generator, edge.layers), "float32"),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens), bool),
    ).jaxpr


def merge_programs(generator: GeneratorConfig, edge: ModelConfig, dtype: str) -> list[ClosedJaxpr]:
    """The two programs of `merge`: experts to one LoRA, and the LoRA into the weights."""
    pool = make_pool(structs(pool_leaves(generator, edge), "float32"), generator)
    gates = jax.ShapeDtypeStruct((edge.layers, generator.experts), jnp.float32)
    rank = generator.rank * (1 if generator.combine == "factors" else generator.top_k)
    assembled = compiled_assemble.trace(pool, gates, rank)
    weights = structs(model_leaves(edge), dtype)["layers"]
    ffn = {name: weights[name] for name in edge.projections}
    placed = tuple((name, None) for name in edge.projections)  # any placement: nothing is run
    return [assembled.jaxpr, compiled_merge(placed, False).trace(ffn, assembled.out_info).jaxpr]
