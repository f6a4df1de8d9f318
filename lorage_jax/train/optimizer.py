"""AdamW or Muon (from optax) with warm-up and cosine decay."""

from __future__ import annotations

from typing import Any

import jax
import optax
import optax.contrib

from lorage_jax.config import OptimizerConfig
from lorage_jax.models.leaves import Leaf

UNDECAYED = ("bias", "scale", "norm", "magnitude")  # ends of the names of leaves


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate: a linear warm-up from 0, then cosine decay to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=0.0,
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, leaves: Any
) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then AdamW or Muon.

    Biases, norms and DoRA's magnitudes, which begin as lengths of weights, have no weight decay.
    `leaves` is the tree of trained `Leaf`, which says which arrays are matrices.
    """
    rate = learning_rate(config, steps)
    settings: dict[str, Any] = {"b1": config.betas[0], "b2": config.betas[1]}
    if config.kind == "adamw":
        chosen = optax.adamw(rate, weight_decay=config.weight_decay, mask=_decayed, **settings)
    else:
        chosen = optax.contrib.muon(
            lambda step: config.matrix_rate * rate(step),
            weight_decay=config.weight_decay,
            weight_decay_mask=_decayed,
            # Scales updates to the size of AdamW's, so that learning rates are comparable.
            consistent_rms=0.2,
            adam_learning_rate=rate,
            muon_weight_dimension_numbers=jax.tree.map(_dimensions, leaves),
            **{f"adam_{name}": value for name, value in settings.items()},
        )
    if config.clip_norm == 0:
        return chosen
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), chosen)


def _dimensions(leaf: Leaf) -> optax.contrib.MuonDimensionNumbers | None:
    if leaf.matrix is None:
        return None
    inputs, outputs = leaf.matrix
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)


def _decayed(trained: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(UNDECAYED), trained
    )
