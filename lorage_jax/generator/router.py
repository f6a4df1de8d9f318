"""The router: hidden states of the meta tokens to gates over the experts (Eq. 3-7).

`R_i = BN(f2(SiLU(f1(T_i))))`: BatchNorm is the last operation, per expert, over the global batch
(and over the layers that share a router). Training uses batch statistics, generation the running
ones, which are saved with the generator.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lorage_jax import ops
from lorage_jax.config import GeneratorConfig
from lorage_jax.models.leaves import Leaf, initialise

BN_MOMENTUM = 0.9  # share of the old running statistics kept at each step
BN_EPS = 1e-5


def _one_router(config: GeneratorConfig, cloud_width: int) -> dict[str, Any]:
    c, e = cloud_width, config.experts
    h = config.router_width or max(1, c // 4)
    leaves = {
        "f1": {
            "kernel": Leaf((c, h), ("cloud", "hidden"), "kaiming"),
            "bias": Leaf((h,), ("hidden",), "zeros"),
        },
        "f2": {
            "kernel": Leaf((h, e), ("hidden", "experts"), "kaiming"),
            "bias": Leaf((e,), ("experts",), "zeros"),
        },
    }
    if config.batch_norm:
        norm = ("experts",)
        leaves["norm"] = {"scale": Leaf((e,), norm, "ones"), "bias": Leaf((e,), norm, "zeros")}
    return leaves


def router_leaves(config: GeneratorConfig, cloud_width: int, layers: int) -> dict[str, Any]:
    """Shapes of the router's parameters; with `per_layer` routers the layer axis in front."""
    return _per_layer(_one_router(config, cloud_width), config, layers)


def statistics_leaves(config: GeneratorConfig, layers: int) -> dict[str, Any]:
    """Shapes of BatchNorm's running statistics; empty without BatchNorm."""
    if not config.batch_norm:
        return {}
    axes, shape = ("experts",), (config.experts,)
    leaves = {"norm": {"mean": Leaf(shape, axes, "zeros"), "var": Leaf(shape, axes, "ones")}}
    return _per_layer(leaves, config, layers)


def _per_layer(leaves: dict[str, Any], config: GeneratorConfig, layers: int) -> dict[str, Any]:
    if config.router_scope == "shared":
        return leaves
    return jax.tree.map(lambda leaf: leaf.stack(layers), leaves)


class Router(nn.Module):
    """f1, SiLU, f2, BatchNorm on [..., C], all in float32; parameters as `router_leaves`."""

    config: GeneratorConfig
    train: bool

    @nn.compact
    def __call__(self, hidden: Float[Array, "... C"]) -> Float[Array, "... E"]:
        leaves = _one_router(self.config, hidden.shape[-1])

        def linear(name, x):
            w = self.param(name, lambda key: initialise(leaves[name], key))
            return ops.einsum("...i,io->...o", x, w["kernel"]) + w["bias"]

        x = linear("f2", jax.nn.silu(linear("f1", hidden.astype(jnp.float32))))
        if not self.config.batch_norm:
            return x
        return nn.BatchNorm(
            use_running_average=not self.train, momentum=BN_MOMENTUM, epsilon=BN_EPS, name="norm"
        )(x)


def route(
    config: GeneratorConfig,
    params: dict[str, Any],
    statistics: dict[str, Any],
    hidden: Float[Array, "P L C"],
    *,
    train: bool,
    key: jax.Array | None,
) -> tuple[Float[Array, "P L E"], dict[str, Any]]:
    """Gates [P, L, E] that sum to 1, and the running statistics after this batch."""
    module, hidden = Router(config, train), hidden.astype(jnp.float32)

    def apply(params, statistics, hidden) -> Any:
        variables = {"params": params, "batch_stats": statistics}
        logits, new = module.apply(variables, hidden, mutable=["batch_stats"])
        return logits, new.get("batch_stats", statistics)

    if config.router_scope == "per_layer":
        apply = jax.vmap(apply, in_axes=(0, 0, 1), out_axes=(1, 0))
    logits, statistics = apply(params, statistics, hidden)
    return gate(config, logits, key if train else None), statistics


def gate(
    config: GeneratorConfig, logits: Float[Array, "P L E"], key: jax.Array | None
) -> Float[Array, "P L E"]:
    """softmax, KeepTop-K and renormalisation (Eq. 6-7), or Gumbel-softmax (Eq. 4-5).

    Gumbel keeps all experts; its noise is drawn only with a key, that is in training.
    """
    if config.routing == "gumbel":
        if key is not None:
            logits = logits + jax.random.gumbel(key, logits.shape)
        return jax.nn.softmax(logits / config.gumbel_temperature, axis=-1)
    probabilities = jax.nn.softmax(logits, axis=-1)
    top, chosen = jax.lax.top_k(probabilities, config.top_k)
    top = top / jnp.sum(top, axis=-1, keepdims=True)
    return jnp.sum(jax.nn.one_hot(chosen, config.experts) * top[..., None], axis=-2)
