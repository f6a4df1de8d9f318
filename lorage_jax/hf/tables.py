"""One row per leaf: its Hugging Face tensor name and how the file stores it.

The same row drives loading and saving. Files store matrices as [out, in], leaves as [in, ..., out]:
the file's array is the leaf's with the head axes flattened, then transposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Row, get_family
from lorage_jax.models.leaves import Leaf, model_leaves

_LAYER = {
    "attn_norm": Row("input_layernorm.weight"),
    "q": Row("self_attn.q_proj.weight", 1),
    "k": Row("self_attn.k_proj.weight", 1),
    "v": Row("self_attn.v_proj.weight", 1),
    "o": Row("self_attn.o_proj.weight", 2),
    "q_bias": Row("self_attn.q_proj.bias"),
    "k_bias": Row("self_attn.k_proj.bias"),
    "v_bias": Row("self_attn.v_proj.bias"),
    "o_bias": Row("self_attn.o_proj.bias"),
    "ffn_norm": Row("post_attention_layernorm.weight"),
    "gate": Row("mlp.gate_proj.weight", 1),
    "up": Row("mlp.up_proj.weight", 1),
    "down": Row("mlp.down_proj.weight", 1),
    "gate_bias": Row("mlp.gate_proj.bias"),
    "up_bias": Row("mlp.up_proj.bias"),
    "down_bias": Row("mlp.down_proj.bias"),
}
_TOP = {
    "embed": Row("model.embed_tokens.weight"),
    "final_norm": Row("model.norm.weight"),
    "head": Row("lm_head.weight", 1),
}
FFN = ("gate", "up", "down")  # the leaves that an adapter changes


def row(config: ModelConfig, path: tuple[str, ...]) -> Row:
    """Returns the row of the leaf at `path`, e.g. ("layers", "gate")."""
    if path[0] != "layers":
        return _TOP[path[0]]
    found = get_family(config.family).rows.get(path[1]) or _LAYER[path[1]]
    return Row("model.layers.{layer}." + found.name, found.inputs)


def rows(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], Leaf, Row]]:
    """Yields (path, leaf, row) for every leaf of the model."""
    for name, value in model_leaves(config).items():
        if isinstance(value, Leaf):
            yield (name,), value, row(config, (name,))
        else:
            for inner, leaf in value.items():
                yield (name, inner), leaf, row(config, (name, inner))


def file_shape(shape: tuple[int, ...], row: Row) -> tuple[int, ...]:
    """The shape in the file of a (per-layer) array with this shape."""
    if row.inputs == 0:
        return shape if row.name == _TOP["embed"].name else (math.prod(shape),)
    return (math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs]))


def to_file(array: np.ndarray, row: Row) -> np.ndarray:
    """Converts a (per-layer) array to the file's layout, contiguous."""
    shape = file_shape(array.shape, row)
    if row.inputs == 0:
        return np.ascontiguousarray(array.reshape(shape))
    return np.ascontiguousarray(array.reshape(shape[::-1]).T)


def file_index(
    shape: tuple[int, ...], row: Row, index: tuple[slice, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Returns the file's index to read for part `index` of an array, and the cut to make after.

    The part to read is the smallest block of whole heads that contains `index`. The second index
    cuts that block in the array's own layout, in which all flattened axes but the first were read
    in full.
    """
    index = tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))

    def block(axes: range) -> tuple[slice, list[slice]]:
        first, inner = axes[0], math.prod(shape[a] for a in axes[1:])
        part = index[first]
        return (
            slice(part.start * inner, part.stop * inner),
            [slice(None), *(index[a] for a in axes[1:])],
        )

    if row.inputs == 0:
        if len(file_shape(shape, row)) == len(shape):
            return index, tuple(slice(None) for _ in shape)
        part, rest = block(range(len(shape)))
        return (part,), tuple(rest)
    inputs, cut_in = block(range(row.inputs))
    outputs, cut_out = block(range(row.inputs, len(shape)))
    return (outputs, inputs), (*cut_in, *cut_out)


def from_file(
    block: np.ndarray, shape: tuple[int, ...], row: Row, cut: tuple[slice, ...]
) -> np.ndarray:
    """Inverts `to_file` for a block read at `file_index`; `shape` is the whole array's shape."""
    if row.inputs == 0:
        if block.ndim == len(shape):
            return block
        return block.reshape(-1, *shape[1:])[cut]
    ours = block.T
    inner_in, inner_out = shape[1 : row.inputs], shape[row.inputs + 1 :]
    first_in = ours.shape[0] // math.prod(inner_in)
    first_out = ours.shape[1] // math.prod(inner_out)
    return ours.reshape(first_in, *inner_in, first_out, *inner_out)[cut]
