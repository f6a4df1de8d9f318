"""AdamW with warm-up and cosine decay, from optax."""

from __future__ import annotations

from typing import Any

import jax
import optax

from lorage_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear from 0 over the warm-up, then a cosine to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=0.0,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW. Biases and norm scales are not decayed."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.betas[0],
        b2=config.betas[1],
        weight_decay=config.weight_decay,
        mask=_decayed,
    )
    if config.clip_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _decayed(trained: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(("bias", "scale", "norm")), trained
    )
