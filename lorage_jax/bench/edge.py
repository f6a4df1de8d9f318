"""An edge, a pool and a card with random values, since run time does not depend on values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.card import Card
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.models.experts import Pool
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.models.presets import random_model

EDGE = "sha256:random-weights"


def random_edge(config: ModelConfig, dtype: str) -> tuple[Model, Pool, Card]:
    """A model of this shape, a pool of two experts of rank 16, and a card that selects both."""
    edge = random_model(config, dtype).replace(identity=EDGE)  # saves hashing random weights
    generator = GeneratorConfig(experts=2, top_k=2)
    experts = initialise(pool_leaves(generator, config), jax.random.key(1))
    experts = jax.tree.map(lambda x: jnp.where(x == 0, 0.01, x), experts)
    gates = np.full((config.layers, 2), 0.5, np.float32)
    jax.block_until_ready(experts)
    return edge, make_pool(experts, generator), Card(gates, "", EDGE)
