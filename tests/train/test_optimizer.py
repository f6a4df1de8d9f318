"""What is decayed: matrices, and neither biases nor norms, under the names of both trees."""

import jax.numpy as jnp
import numpy as np

from lorage_jax.config import OptimizerConfig
from lorage_jax.train.optimizer import make_optimizer


def test_biases_and_norms_are_not_decayed():
    names = ("kernel", "a", "gate", "embed", "bias", "q_bias", "scale", "attn_norm", "final_norm")
    params = {name: jnp.ones(3) for name in names}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), steps=10)
    moments = optimizer.init(params)
    still = {name: jnp.zeros(3) for name in names}
    for _ in range(2):  # the first step of the warm-up has learning rate 0
        updates, moments = optimizer.update(still, moments, params)
    moved = {name for name, update in updates.items() if np.any(np.asarray(update) != 0)}
    assert moved == {"kernel", "a", "gate", "embed"}
