"""How llama.cpp computes each family: one row per family, and what it does not compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError, bullets


@dataclass(frozen=True)
class Architecture:
    """A model architecture of llama.cpp.

    Attributes:
        name: its name in the file.
        permuted: channels of q and k that rotate as a pair are neighbours, not half a head apart.
        biases: the projections that may have biases: `qkv`, `out`, `ffn`.
        whole_heads: heads divide the width: its head_dim is width / heads.
        full_every: every so many layers attend to the whole context, the others to a window; None:
            all layers attend to the whole context.
        unrotated_every: every so many layers have no rope; None: all have.
        softcaps: attention and logits are soft-capped.
        wide_at: with this number of layers, queries are scaled by width / heads.
        activation: the FFN's.
        llama3_rope: rope may be scaled as in llama3.
        partial_rope: rope may turn a part of each head.
        ties_head: the head is the table of embeddings.
        default_window: the window of a file that names none.
        trained_windows: all layers were trained with a window, which llama.cpp lacks.
        local_rope: layers with a window have a rope of their own.
        factors: the file has factors on embeddings, queries, residuals and logits.
    """

    name: str
    permuted: bool = False
    biases: frozenset[str] = frozenset()
    whole_heads: bool = False
    full_every: int | None = None
    unrotated_every: int | None = None
    softcaps: bool = False
    wide_at: int | None = None
    activation: str = "silu"
    llama3_rope: bool = False
    partial_rope: bool = False
    ties_head: bool = False
    default_window: int | None = None
    trained_windows: bool = False
    local_rope: bool = False
    factors: bool = False


ARCHITECTURES = {
    "llama": Architecture(
        "llama", permuted=True, biases=frozenset({"qkv", "out", "ffn"}), llama3_rope=True
    ),
    "mistral": Architecture("llama", permuted=True, llama3_rope=True),
    "qwen2": Architecture("qwen2", biases=frozenset({"qkv"}), whole_heads=True),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", activation="gelu_tanh", ties_head=True),
    "gemma2": Architecture(
        "gemma2",
        full_every=2,
        softcaps=True,
        wide_at=46,
        activation="gelu_tanh",
        ties_head=True,
        default_window=4096,
    ),
    "gemma3_text": Architecture(
        "gemma3",
        full_every=6,
        wide_at=62,
        activation="gelu_tanh",
        ties_head=True,
        local_rope=True,
    ),
    "phi3": Architecture("phi3", whole_heads=True, partial_rope=True, trained_windows=True),
    "smollm3": Architecture("smollm3", permuted=True, unrotated_every=4),
    "olmo2": Architecture("olmo2", whole_heads=True),
    "granite": Architecture(
        "granite",
        permuted=True,
        biases=frozenset({"qkv", "out", "ffn"}),
        llama3_rope=True,
        factors=True,
    ),
}


def get_architecture(config: ModelConfig) -> Architecture:
    """The row of a model's family.

    Raises ConfigError that lists all parts of the model that llama.cpp would compute otherwise.
    """
    if config.family not in ARCHITECTURES:
        raise ConfigError(
            f"models of the family {config.family} cannot be written as GGUF; expected one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    row = ARCHITECTURES[config.family]
    if problems := _problems(config, row):
        raise ConfigError(
            f"llama.cpp does not compute this {config.family} as it was trained:\n"
            f"{bullets(problems)}\nUse the Hugging Face folder instead."
        )
    return row


def _problems(config: ModelConfig, row: Architecture) -> list[str]:
    biases = {"qkv": config.qkv_bias, "out": config.out_bias, "ffn": config.ffn_bias}
    unwanted = sorted(name for name, there in biases.items() if there and name not in row.biases)
    layers, scaling = range(config.layers), config.rope_scaling
    scale = query_scale(row, config.layers, config.width / config.heads, config.head_dim)
    problems = [f"biases of {', '.join(unwanted)}"] if unwanted else []
    if config.activation != row.activation:
        problems.append(f"activation {config.activation}; it takes {row.activation}")
    if row.whole_heads and config.heads * config.head_dim != config.width:
        problems.append(
            f"{config.heads} heads of {config.head_dim} channels in a width of {config.width}"
        )
    if not row.factors and abs(config.query_scale - scale) > 1e-4 * scale:
        problems.append(f"queries scaled by {config.query_scale:.6g}; it takes {scale:.6g}")
    if scaling is not None and scaling.kind == "yarn":
        problems.append("rope scaled by yarn")
    if scaling is not None and scaling.kind == "llama3" and not row.llama3_rope:
        problems.append("rope scaled as in llama3")
    if config.rotary_fraction != 1 and not row.partial_rope:
        problems.append("rope on a part of each head")
    if row.full_every is not None and config.sliding != tuple(
        (layer + 1) % row.full_every != 0 for layer in layers
    ):
        problems.append(f"sliding layers; it takes all but every {row.full_every}th")
    if row.unrotated_every is not None:
        expected = tuple((layer + 1) % row.unrotated_every == 0 for layer in layers)
        if (config.unrotated or (False,) * config.layers) != expected:
            problems.append(f"layers without rope; it takes every {row.unrotated_every}th")
    if row.softcaps != (config.attn_softcap is not None):
        problems.append(f"attention soft-capped at {config.attn_softcap}")
    if row.softcaps and config.final_softcap is None:
        problems.append("logits without a soft-cap")
    if row.ties_head and not config.tied_head:
        problems.append("a head that differs from the embeddings")
    return problems


def query_scale(row: Architecture, layers: int, width: float, head_dim: int) -> float:
    """The factor on queries; `width`: channels of the whole model for each head."""
    return (width if layers == row.wide_at else head_dim) ** -0.5


def context_length(config: ModelConfig, row: Architecture) -> int:
    """The longest context in which llama.cpp computes the same.

    It lacks the windows of some families, which make no difference up to their own length.
    """
    if row.full_every is None and any(config.sliding):
        return min(config.max_positions, config.window or config.max_positions)
    return config.max_positions


def add_model_keys(writer: Any, config: ModelConfig, row: Architecture) -> None:
    """Adds the sizes and constants of the arithmetic to a file."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_length(config, row))
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        writer.add_string(f"{row.name}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    if config.window is not None and row.full_every is not None:
        writer.add_sliding_window(config.window)
    if config.local_rope_theta is not None:
        writer.add_rope_freq_base_swa(config.local_rope_theta)
    if row.factors:
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_attention_scale(config.query_scale)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_divisor)
    if config.attn_softcap is not None:
        writer.add_attn_logit_softcapping(config.attn_softcap)
    if config.final_softcap is not None:
        writer.add_final_logit_softcapping(config.final_softcap)
