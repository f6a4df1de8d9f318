"""One row per leaf: its Hugging Face tensor name and how the file stores it.

The same row drives loading and saving. Files store matrices as [out, in], leaves as [in, ..., out]:
the file's array is the leaf's with the head axes flattened, then transposed. A fused tensor holds
the arrays of several leaves, one below the other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.hf.family import Row, get_family
from lorage_jax.models.leaves import Leaf, layer_leaves, model_leaves

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
    "q_norm": Row("self_attn.q_norm.weight"),
    "k_norm": Row("self_attn.k_norm.weight"),
    "ffn_norm": Row("post_attention_layernorm.weight"),
    "gate": Row("mlp.gate_proj.weight", 1),
    "up": Row("mlp.up_proj.weight", 1),
    "down": Row("mlp.down_proj.weight", 1),
    "gate_bias": Row("mlp.gate_proj.bias"),
    "up_bias": Row("mlp.up_proj.bias"),
    "down_bias": Row("mlp.down_proj.bias"),
}
_DECODER = {
    "embed": Row("embed_tokens.weight", table=True),
    "final_norm": Row("norm.weight"),
}
_HEAD = Row("lm_head.weight", 1)


def row(config: ModelConfig, path: tuple[str, ...]) -> Row:
    """Returns the row of the leaf at `path`, e.g. ("layers", "gate")."""
    if path == ("head",):
        return _HEAD
    family, leaf = get_family(config.family), path[-1]
    found = family.rows.get(leaf) or (_LAYER if path[0] == "layers" else _DECODER)[leaf]
    stem = f"{family.decoder}.layers.{{layer}}" if path[0] == "layers" else family.decoder
    if found.fused:
        leaves = layer_leaves(config)
        sizes = [file_shape(leaves[name].shape, found)[0] for name in found.fused]
        start = sum(sizes[: found.fused.index(leaf)])
        found = dataclasses.replace(found, start=start, total=sum(sizes))
    return dataclasses.replace(found, name=f"{stem}.{found.name}")


def rows(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], Leaf, Row]]:
    """Yields (path, leaf, row) for every leaf of the model."""
    for name, value in model_leaves(config).items():
        if isinstance(value, Leaf):
            yield (name,), value, row(config, (name,))
        else:
            for inner, leaf in value.items():
                yield (name, inner), leaf, row(config, (name, inner))


def leaf_array(params: Mapping[str, Any], path: tuple[str, ...], layer: int | None) -> np.ndarray:
    """The array of the leaf at a path of a model's parameters, of one layer if it has layers."""
    value: Any = params
    for name in path:
        value = value[name]
    return np.asarray(value if layer is None else value[layer])


def tensors(
    config: ModelConfig, get: Callable[[tuple[str, ...], int | None], np.ndarray], *only: str
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields the name of every tensor of the file, and a function that makes its array.

    Args:
        get: returns the array of the leaf at a path, of one layer if the leaf has layers.
        only: names of leaves; yields the tensors that hold these, default all.
    """
    for path, leaf, row in rows(config):
        if (only and path[-1] not in only) or row.start:
            continue
        parts = [(*path[:-1], name) for name in row.fused] or [path]

        def make(parts: list[tuple[str, ...]], row: Row, layer: int | None) -> np.ndarray:
            arrays = [to_file(get(part, layer), row) for part in parts]
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

        for layer in range(leaf.shape[0]) if leaf.axes[0] == "layers" else (None,):
            yield row.name.format(layer=layer), functools.partial(make, parts, row, layer)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the file."""
    found: dict[str, tuple[int, ...]] = {}
    for _, leaf, row in rows(config):
        stacked = leaf.axes[0] == "layers"
        shape = tensor_shape(leaf.shape[1:] if stacked else leaf.shape, row)
        for layer in range(leaf.shape[0]) if stacked else (0,):
            found[row.name.format(layer=layer)] = shape  # fused: again and again the same
    return found


def adapted(
    config: ModelConfig, targets: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The modules that an adapter changes: {layer} in a module's name -> the leaves it holds.

    `targets`: names of the leaves that it changes; by default, the FFN's projections.
    """
    found = {}
    for leaf in config.projections if targets is None else targets:
        one = row(config, ("layers", leaf))
        found[one.name.removesuffix(".weight")] = one.fused or (leaf,)
    return found


def tensor_shape(shape: tuple[int, ...], row: Row) -> tuple[int, ...]:
    """The shape of the whole tensor that holds a (per-layer) array with this shape."""
    own = file_shape(shape, row)
    return own if row.total is None else (row.total, *own[1:])


def file_shape(shape: tuple[int, ...], row: Row) -> tuple[int, ...]:
    """The shape in the file of a (per-layer) array with this shape."""
    if row.inputs == 0:
        return shape if row.table else (math.prod(shape),)
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
            return (_below(index[0], row), *index[1:]), tuple(slice(None) for _ in shape)
        part, rest = block(range(len(shape)))
        return (_below(part, row),), tuple(rest)
    inputs, cut_in = block(range(row.inputs))
    outputs, cut_out = block(range(row.inputs, len(shape)))
    return (_below(outputs, row), inputs), (*cut_in, *cut_out)


def _below(part: slice, row: Row) -> slice:
    """The place in the file of rows `part` of a leaf's array."""
    return slice(part.start + row.start, part.stop + row.start)


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
