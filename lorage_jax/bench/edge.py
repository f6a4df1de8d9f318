"""An edge, experts and a card with random values, since run time does not depend on values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.bench.routed import routed_pool
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.card import Card
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.methods.routed import RoutedMethod
from lorage_jax.models.experts import Pool, Routed
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.models.presets import random_model

EDGE = "sha256:random-weights"


def random_edge(config: ModelConfig, dtype: str) -> tuple[Model, Pool, Card]:
    """A model of this shape, a pool of two experts of rank 16, and a card that selects both."""
    edge = random_model(config, dtype).replace(identity=EDGE)  # saves hashing random weights
    generator = GeneratorConfig(experts=2, top_k=2)
    experts = _drawn(pool_leaves(generator, config))
    gates = np.full((config.layers, 2), 0.5, np.float32)
    return edge, make_pool(experts, generator), Card(gates, "", EDGE)


def random_routed(method: type[RoutedMethod], config: ModelConfig) -> Routed:
    """Experts and routers of LoRAMoE or MixLoRA for a model of this shape, float32."""
    return routed_pool(method, config, _drawn)


def _drawn(leaves: Any) -> Any:
    """Random float32 values of a tree of leaves; those that training starts at 0 are 0.01."""
    values = initialise(leaves, jax.random.key(1))
    return jax.block_until_ready(jax.tree.map(lambda x: jnp.where(x == 0, 0.01, x), values))
