"""What differs between the families that `decoder.py` computes, beyond the numbers in a config."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`norm_offset`: norms multiply by offset + scale. `scaled_embedding`: times sqrt(D).

    `post_norms`: attention and FFN outputs are normed before they join the residual stream.
    """

    norm_offset: float
    scaled_embedding: bool
    post_norms: bool


FAMILIES = {
    "llama": Family(norm_offset=0.0, scaled_embedding=False, post_norms=False),
    "qwen2": Family(norm_offset=0.0, scaled_embedding=False, post_norms=False),
    "gemma": Family(norm_offset=1.0, scaled_embedding=True, post_norms=False),
    "gemma2": Family(norm_offset=1.0, scaled_embedding=True, post_norms=True),
}
