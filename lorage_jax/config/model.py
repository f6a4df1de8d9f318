"""Configuration of a decoder, which `hf/config.py` reads from a Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lorage_jax.fields import check_types, require

SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width")


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary positions: `llama3` (by wavelength) or `linear`."""

    kind: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self):
        check_types(self)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model. Letters: V vocabulary, D width, L layers, N/K heads, H, F."""

    family: str  # a name in `hf/families/`
    vocab_size: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    ffn_width: int  # F
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_head: bool
    activation: Literal["silu", "gelu_tanh"]
    query_scale: float  # multiplies q.k before the soft-cap
    qkv_bias: bool
    out_bias: bool
    ffn_bias: bool
    attn_softcap: float | None
    final_softcap: float | None
    window: int | None  # keys seen by a sliding layer, the query itself included
    sliding: tuple[bool, ...]  # [L]: which layers slide
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    # The family implies these, so that they are not part of a config's text.
    norm_offset: float = field(default=0.0, repr=False)  # norms multiply by offset + scale
    scaled_embedding: bool = field(default=False, repr=False)  # by the square root of the width
    post_norms: bool = field(default=False, repr=False)  # attention and FFN outputs are normed too

    def __post_init__(self):
        check_types(self)
        for name in SIZES:
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")
        require(
            self.heads % self.kv_heads == 0,
            f"{self.heads} heads do not divide over {self.kv_heads} kv heads.",
        )
        require(
            len(self.sliding) == self.layers,
            f"sliding names {len(self.sliding)} layers; the model has {self.layers}.",
        )
        require(
            self.window is not None or not any(self.sliding),
            "some layers slide but no window is given.",
        )
        require(self.head_dim % 2 == 0, f"head_dim is {self.head_dim}; rope needs it even.")
