"""Configuration of a decoder, which `hf/config.py` reads from a Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lorage_jax.fields import check_types, require, require_least

# The projections of an FFN, in the order of the arithmetic; the adapter sits on these.
PROJECTIONS = ("gate", "up", "down")
SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width")


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary positions: `linear`, or `llama3` and `yarn` by wavelength."""

    kind: Literal["llama3", "linear", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    # For yarn alone, so that they are not part of another scaling's text.
    beta_fast: float = field(default=32.0, repr=False)  # turns from which a frequency stays
    beta_slow: float = field(default=1.0, repr=False)  # turns below which all of it is scaled
    truncate: bool = field(default=True, repr=False)  # these bounds to whole channels
    attention_factor: float = field(default=1.0, repr=False)  # multiplies cosines and sines

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
    activation: Literal["silu", "gelu_tanh", "relu"]
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
    embedding_multiplier: float = field(default=1.0, repr=False)
    residual_multiplier: float = field(default=1.0, repr=False)  # of attention's and FFN's outputs
    logits_divisor: float = field(default=1.0, repr=False)
    norm_kind: Literal["rms", "layer"] = field(default="rms", repr=False)  # "layer" has biases
    pre_norms: bool = field(default=True, repr=False)  # attention and FFN inputs are normed
    post_norms: bool = field(default=False, repr=False)  # attention and FFN outputs are normed
    # Norms of q and k before rope: None, over each head, or over all heads together.
    qk_norm: Literal["head", "width"] | None = field(default=None, repr=False)
    rotary_fraction: float = field(default=1.0, repr=False)  # the first channels of a head rotate
    # The rope base of sliding layers, without scaling; None: as in all other layers.
    local_rope_theta: float | None = field(default=None, repr=False)
    # [L]: which layers have no rope; None: all have.
    unrotated: tuple[bool, ...] | None = field(default=None, repr=False)
    # The row of position 0 in a table of learned positions; None: positions are rotary.
    position_offset: int | None = field(default=None, repr=False)
    gated: bool = field(default=True, repr=False)  # the FFN has a gate projection

    def __post_init__(self):
        check_types(self)
        require_least(self, 1, *SIZES)
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
        require(
            self.unrotated is None or len(self.unrotated) == self.layers,
            f"unrotated names {len(self.unrotated or ())} layers; the model has {self.layers}.",
        )
        if self.position_offset is None:
            require(
                self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
                f"head_dim is {self.head_dim}, of which {self.rotary_dim} channels rotate; rope "
                "needs an even number of these.",
            )

    @property
    def projections(self) -> tuple[str, ...]:
        """The FFN's projections, in the order of the arithmetic; the adapter sits on these."""
        return PROJECTIONS if self.gated else PROJECTIONS[1:]

    @property
    def rotary_dim(self) -> int:
        """The number of channels of a head that rotate."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def embedding_scale(self) -> float:
        """The factor on token embeddings."""
        return self.embedding_multiplier * (self.width**0.5 if self.scaled_embedding else 1.0)
