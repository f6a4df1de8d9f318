"""Attention by cuDNN's kernels on NVIDIA GPUs: scores of all heads are never held in memory.

`jax.nn.dot_product_attention` calls them. Unlike the kernels of `flash.py`, they take any mask, so
they serve rows of several texts, continuations, windows and earlier keys alike. A mask becomes one
16-bit bias [B, 1, T, S] for all heads.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from lorage_jax.sharding import Layout

LARGEST_HEAD = 128
MULTIPLE = 8  # lengths are padded to a multiple; the backward pass needs even ones


def computes_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    cap: float | None,
    layout: Layout | None,
) -> bool:
    """True if the kernels can compute this: in 16 bits, without a soft cap, on a recent GPU.

    Without a layout, the program must run on JAX's default device, so False if there are several.
    """
    if layout is None and jax.local_device_count() > 1:
        return False
    device = jax.devices()[0] if layout is None else layout.mesh.devices.flat[0]
    return (
        _is_ampere_or_later(device)
        and cap is None
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.dtype == k.dtype == v.dtype
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= LARGEST_HEAD
    )


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    scale: float,
    layout: Layout | None,
) -> Float[Array, "B T N H"]:
    """`ops.attention` without a soft cap; with a layout, each device attends for its own rows.

    Where a query sees no key, its output is meaningless.
    """
    attend = functools.partial(_attend, scale=scale)
    if layout is None:
        return attend(q, k, v, mask)
    rows, heads = layout.rules.batch, layout.head_axis(q.shape[2], k.shape[2])
    by_head = PartitionSpec(rows, None, heads)
    return jax.shard_map(
        attend,
        mesh=layout.mesh,
        in_specs=(by_head, by_head, by_head, PartitionSpec(rows)),
        out_specs=by_head,
        check_vma=False,
    )(q, k, v, mask)


def _attend(q, k, v, mask, scale):
    queries, keys = mask.shape[1:]
    more_queries, more_keys = -queries % MULTIPLE, -keys % MULTIPLE
    q = jnp.pad(q, ((0, 0), (0, more_queries), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, more_keys), (0, 0), (0, 0))) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0), (0, more_queries), (0, more_keys)))
    return _kernel(q, k, v, mask[:, None], scale)[:, :queries]


def _kernel(q, k, v, mask, scale):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="cudnn")


def _is_ampere_or_later(device: Any) -> bool:
    """True for an NVIDIA GPU of compute capability 8.0 or later; AMD's have names, not numbers."""
    capability = str(getattr(device, "compute_capability", ""))
    major = capability.partition(".")[0]
    return device.platform == "gpu" and major.isdecimal() and int(major) >= 8
