"""Models with random weights, of any shape.

Costs depend on a model's shape, not on the values of its weights, so benchmarks need no downloads.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.models.leaves import Leaf, model_leaves
from lorage_jax.models.model import Model


def plain_decoder(
    family: str,
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn_width: int,
    **fields: Any,
) -> ModelConfig:
    """A decoder of these sizes with plain settings, which `fields` override.

    Plain settings: head size width / heads, SiLU, unscaled rope with base 10,000, an untied head,
    no biases, soft-caps or windows. `hf.family.family_decoder` adds those of a family.
    """
    head_dim = fields.pop("head_dim", width // heads)
    plain: dict[str, Any] = {
        "max_positions": 2048,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "tied_head": False,
        "activation": "silu",
        "query_scale": head_dim**-0.5,
        "qkv_bias": False,
        "out_bias": False,
        "ffn_bias": False,
        "attn_softcap": None,
        "final_softcap": None,
        "window": None,
        "sliding": (False,) * layers,
        "bos_id": None,
        "eos_ids": (),
        "pad_id": None,
    }
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_width=ffn_width,
        **(plain | fields),
    )


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The same model with `layers` layers; more layers repeat its pattern of windows and ropes.

    Raises ConfigError if `layers` is below 1, or if there is no repeating pattern to continue.
    """
    if layers < 1:
        raise ConfigError(f"layers is {layers}; expected 1 or more.")
    pattern = tuple(zip(config.sliding, config.unrotated or config.layers * (False,), strict=True))
    if layers > config.layers:
        period = next(p for p in range(1, len(pattern) + 1) if _repeats(pattern, p))
        if period > max(1, config.layers // 2):
            raise ConfigError(
                f"layers is {layers}, but only the first {config.layers} say whether they slide "
                f"and rotate, in no repeating pattern; expected at most {config.layers}."
            )
        pattern = pattern[:period] * (layers // period + 1)
    sliding, unrotated = zip(*pattern[:layers], strict=True)
    return dataclasses.replace(
        config,
        layers=layers,
        sliding=sliding,
        unrotated=None if config.unrotated is None else unrotated,
    )


def _repeats(pattern: tuple[Any, ...], period: int) -> bool:
    return all(x == pattern[i % period] for i, x in enumerate(pattern))


def parameter_count(config: ModelConfig) -> int:
    """Number of weights of a model."""
    return sum(struct.size for struct in jax.tree.leaves(structs(model_leaves(config), "float32")))


def structs(leaves: Any, dtype: str) -> Any:
    """Shapes and dtype of a tree of `Leaf`, without values, for tracing and compiling."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, DTYPES[dtype]), leaves)


def random_model(config: ModelConfig, dtype: str, shardings: Any = None) -> Model:
    """A model of this shape with random weights (key 0) and without eos ids, so it never stops.

    `shardings` is a tree of shardings of the weights; by default all are on the first device.
    """
    config = dataclasses.replace(config, eos_ids=())
    leaves, tree = jax.tree.flatten(model_leaves(config))

    @partial(jax.jit, out_shardings=shardings)
    def draw(key):
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten(
            [_draw(leaf, k, DTYPES[dtype]) for leaf, k in zip(leaves, keys, strict=True)]
        )

    return Model(config, jax.block_until_ready(draw(jax.random.key(0))), tokenizer=None)


def _draw(leaf: Leaf, key: jax.Array, dtype: Any) -> jax.Array:
    """Draws a leaf; a matrix is the product of a random column and a random row.

    Drawing every number would take three times the model's memory, and much longer.
    """
    if leaf.init != "normal":
        return leaf.initialise(key, dtype)
    one, other = jax.random.split(key)
    column = jax.random.normal(one, (*leaf.shape[:-1], 1))
    row = jax.random.normal(other, leaf.shape[-1:])
    return (column * row * leaf.inputs**-0.5).astype(dtype)
