"""The paper's models as shapes, and models of a shape with random weights.

Costs depend on a model's shape, not on the values of its weights: benchmarks need no downloads.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from lorage_jax.config import SIZES, ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.hf.load import DTYPES
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
    """A decoder of these sizes; `fields` are whatever is not plain about it.

    Plain: width shared out over the heads, silu, rope of base 10,000 unscaled, an own head, no
    biases, soft-caps or windows.
    """
    head_dim = fields.pop("head_dim", width // heads)
    plain = {
        "max_positions": 2048,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "tied_head": False,
        "activation": "silu",
        "query_scale": head_dim**-0.5,
        "qkv_bias": family == "qwen2",
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


# As in the config.json of TinyLlama-1.1B, Qwen2-1.5B, gemma-2-2b and Meta-Llama-3-8B.
SHAPES = {
    "tinyllama": plain_decoder(
        "llama",
        vocab_size=32_000,
        width=2048,
        layers=22,
        heads=32,
        kv_heads=4,
        ffn_width=5632,
        bos_id=1,
        eos_ids=(2,),
    ),
    "qwen2-1.5b": plain_decoder(
        "qwen2",
        vocab_size=151_936,
        width=1536,
        layers=28,
        heads=12,
        kv_heads=2,
        ffn_width=8960,
        max_positions=131_072,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
        tied_head=True,
        bos_id=151_643,
        eos_ids=(151_643,),
    ),
    "gemma2-2b": plain_decoder(
        "gemma2",
        vocab_size=256_000,
        width=2304,
        layers=26,
        heads=8,
        kv_heads=4,
        head_dim=256,
        ffn_width=9216,
        max_positions=8192,
        norm_eps=1e-6,
        tied_head=True,
        activation="gelu_tanh",
        attn_softcap=50.0,
        final_softcap=30.0,
        window=4096,
        sliding=(True, False) * 13,
        bos_id=2,
        eos_ids=(1,),
        pad_id=0,
    ),
    "llama3-8b": plain_decoder(
        "llama",
        vocab_size=128_256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        ffn_width=14_336,
        max_positions=8192,
        rope_theta=500_000.0,
        bos_id=128_000,
        eos_ids=(128_001,),
    ),
}


# The last part of these models' names on the Hub -> their shape.
KNOWN = {
    "TinyLlama-1.1B-intermediate-step-1431k-3T": "tinyllama",
    "Qwen2-1.5B": "qwen2-1.5b",
    "gemma-2-2b": "gemma2-2b",
    "Meta-Llama-3-8B": "llama3-8b",
}


def known_shape(name: str) -> ModelConfig | None:
    """The shape of a model of the Hub, or of a folder that is called as it is there; else None."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return SHAPES[KNOWN[last]] if last in KNOWN else None


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The same model cut to `layers`, or deepened by repeating its pattern of sliding layers.

    ConfigError below 1 layer, or when sliding layers follow no pattern that could go on.
    """
    if layers < 1:
        raise ConfigError(f"layers is {layers}; expected 1 or more.")
    pattern = config.sliding
    if layers > config.layers:
        period = next(p for p in range(1, len(pattern) + 1) if _repeats(pattern, p))
        if period > max(1, config.layers // 2):
            raise ConfigError(
                f"layers is {layers}, but only the first {config.layers} say whether they slide, "
                f"in no repeating pattern; expected at most {config.layers}."
            )
        pattern = pattern[:period] * (layers // period + 1)
    return dataclasses.replace(config, layers=layers, sliding=pattern[:layers])


def _repeats(pattern: tuple[bool, ...], period: int) -> bool:
    return all(x == pattern[i % period] for i, x in enumerate(pattern))


def shape_name(config: ModelConfig) -> str | None:
    """The key in `SHAPES` of a model with this family and these sizes, head tied alike."""

    def sizes(config: ModelConfig) -> list[Any]:
        return [getattr(config, name) for name in ("family", "tied_head", *SIZES)]

    return next((name for name, shape in SHAPES.items() if sizes(shape) == sizes(config)), None)


def parameter_count(config: ModelConfig) -> int:
    """How many numbers a model's weights are."""
    return sum(struct.size for struct in jax.tree.leaves(structs(model_leaves(config), "float32")))


def structs(leaves: Any, dtype: str) -> Any:
    """What a compiler needs of a tree of `Leaf`: shapes and dtype, no values."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, DTYPES[dtype]), leaves)


def random_model(config: ModelConfig, dtype: str, shardings: Any = None) -> Model:
    """A model of this shape with random weights (key 0), that no eos stops.

    `shardings`: of the tree of weights; by default all are on the first device.
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
    """A matrix is a random column times a random row: drawing every number would take three times
    the model's memory, and much longer.
    """
    if leaf.init != "normal":
        return leaf.initialise(key, dtype)
    one, other = jax.random.split(key)
    column = jax.random.normal(one, (*leaf.shape[:-1], 1))
    row = jax.random.normal(other, leaf.shape[-1:])
    return (column * row * leaf.inputs**-0.5).astype(dtype)
