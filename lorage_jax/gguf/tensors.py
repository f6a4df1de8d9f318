"""Names and arrays of tensors, between Hugging Face and llama.cpp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lorage_jax import rotary
from lorage_jax.config import ModelConfig, RopeScaling
from lorage_jax.errors import ConfigError
from lorage_jax.files.gguf import library
from lorage_jax.gguf.architectures import Architecture

ROPE = "rope_freqs.weight"  # the divisors of rope frequencies


def tensor_names(config: ModelConfig, row: Architecture) -> Callable[[str], str]:
    """A function from names of Hugging Face to llama.cpp's. It raises ConfigError without one."""
    gguf = library()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[row.name], config.layers)

    def get(name: str) -> str:
        if (found := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
            raise ConfigError(f"the gguf package has no name for {name} of a {row.name}.")
        return found

    return get


def to_llamacpp(
    config: ModelConfig, row: Architecture, name: str, values: np.ndarray
) -> np.ndarray:
    """A tensor of Hugging Face as llama.cpp computes with it, in float32."""
    values = np.asarray(values, np.float32)
    if is_permuted(row, name):
        return _reordered(values, 2, config.head_dim // 2)
    if is_offset(config, name):
        return values + np.float32(config.norm_offset)
    return values


def from_llamacpp(
    config: ModelConfig, row: Architecture, name: str, values: np.ndarray
) -> np.ndarray:
    """Inverts `to_llamacpp` for a tensor or some of its rows: whole heads where it is permuted."""
    if is_permuted(row, name):
        return _reordered(values, config.head_dim // 2, 2)
    if is_offset(config, name):
        return np.asarray(values, np.float32) - np.float32(config.norm_offset)
    return values


def is_permuted(row: Architecture, name: str) -> bool:
    """True for a tensor whose rows stand in another order inside each head."""
    return row.permuted and _module(name) in ("q_proj", "k_proj")


def is_offset(config: ModelConfig, name: str) -> bool:
    """True for a norm whose offset llama.cpp has in its scale."""
    return bool(config.norm_offset) and _module(name).endswith("norm")


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _reordered(values: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """Rows of each head, [outer, inner], in the order [inner, outer]."""
    parts = values.reshape(-1, outer, inner, *values.shape[1:])
    return parts.swapaxes(1, 2).reshape(values.shape)


def rope_divisors(size: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """The divisors of the rope frequencies of `size` channels of a head, [size / 2]."""
    plain = rotary.frequencies(size, theta, None)
    return np.asarray(plain / rotary.frequencies(size, theta, scaling), np.float32)
