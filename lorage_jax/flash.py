"""Attention over whole texts on TPUs, block by block: [T, T] scores are never held in memory.

The kernels are `jax.experimental.pallas.ops.tpu.splash_attention`; each device runs them on its own
rows and heads. `cudnn.py` has those of NVIDIA GPUs; `ops.attention` computes the same for every
other device and mask.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from lorage_jax.sharding import Layout

LANES = 128  # blocks are a multiple of this
BLOCK = 512  # largest block, in slots


def flash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    window: int | None,
    scale: float,
    cap: float | None,
    layout: Layout,
) -> Float[Array, "B T N H"]:
    """`ops.attention` with a causal mask within each text, and optionally a sliding window.

    `segments` numbers the text of each slot within its row, 0 for padding. `window` counts slots.
    Padding attends to padding, so that every query has a key; its output is meaningless. On a CPU
    the kernels are interpreted, which is slow.
    """
    size, padded = block_size(q.shape[1])
    rows, heads = layout.rules.batch, layout.head_axis(q.shape[2], k.shape[2])

    def attend(q, k, v, segments):
        kernel = _kernel(q.shape[2], size, padded, window, cap, layout.platform == "cpu")
        # The kernels have no scale argument. In float32, because bfloat16 would round the scale.
        q = (q.astype(jnp.float32) * scale).astype(q.dtype)
        q, k, v = (_pad(x, padded).swapaxes(1, 2) for x in (q, k, v))
        length, segments = segments.shape[1], _pad(segments, padded)
        y: Array = jax.vmap(kernel)(  # pyright: ignore[reportAssignmentType]  no residuals
            q, k, v, splash.SegmentIds(segments, segments)
        )
        return y.swapaxes(1, 2)[:, :length]

    by_head = PartitionSpec(rows, None, heads)
    return jax.shard_map(
        attend,
        mesh=layout.mesh,
        in_specs=(by_head, by_head, by_head, PartitionSpec(rows)),
        out_specs=by_head,
        check_vma=False,
    )(q, k, v, segments.astype(jnp.int32))


def block_size(length: int) -> tuple[int, int]:
    """Slots per block, and in all blocks together: as few equal blocks as hold `length` slots."""
    count = -(-length // BLOCK)
    size = -(-length // (count * LANES)) * LANES
    return size, count * size


def _kernel(heads, size, padded, window, cap, interpret):
    shape = (padded, padded)
    if window is None:
        mask = masks.CausalMask(shape)
    else:
        mask = masks.LocalMask(shape, (window - 1, 0), 0)
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


def _pad(x: Array, length: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
