"""MixLoRA (arXiv 2404.15159): every token mixes the outputs of its best FFNs, each with own LoRAs.

A router per layer reads the FFN's input, keeps the K most probable of E experts and weighs their
whole outputs, so the non-linearity lies inside the mixture, which therefore cannot be merged. The
attention has one plain LoRA. The balance term is E sum_i f_i p_i over the tokens of all layers
together, with the share of tokens f_i that keep expert i and its mean probability p_i; balanced, it
is K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lorage_jax.config import ModelConfig
from lorage_jax.fields import check_types, require
from lorage_jax.files.manifest import Kind
from lorage_jax.generator.loras import Linear, linears, lora_leaves
from lorage_jax.generator.pool import expert_leaves
from lorage_jax.methods.lora import Shown
from lorage_jax.methods.method import register
from lorage_jax.methods.parts import parts_kind
from lorage_jax.methods.routed import RoutedMethod, Sums, check_numbers
from lorage_jax.models.experts import Routed
from lorage_jax.models.leaves import Leaf, initialise

ROUTER_STD = 0.02  # of fresh routers


@dataclass(frozen=True)
class MixLoraSettings:
    """Settings of the method `mixlora`; the defaults are those of MoE-PEFT's template."""

    experts: int = 8
    top_k: int = 2
    rank: int = 16  # of every LoRA
    alpha: float = 32.0
    dropout: float = 0.05
    attention: tuple[Linear, ...] = ("q", "k", "v", "o")  # linear layers with one plain LoRA
    balance: float = 0.001  # weight of the balance term
    prompt: Shown = "in_context"  # the edge reads the system prompt before each query, or not

    def __post_init__(self):
        check_types(self)
        check_numbers(self)
        ffn = [name for name in self.attention if name not in ("q", "k", "v", "o")]
        require(not ffn, f"attention has {', '.join(ffn)}, which the experts change already.")


@register
@dataclass(frozen=True, eq=False)
class MixLora(RoutedMethod):
    """Top-K experts of whole FFNs, chosen per token."""

    name: ClassVar[str] = "mixlora"
    what: ClassVar[str] = "MixLoRA: each token mixes the FFNs of its best LoRA experts, unmerged"
    result: ClassVar[str] = "mixlora"
    kind: ClassVar[Kind] = parts_kind("mixlora", "a trained MixLoRA")
    settings: ClassVar[type | None] = MixLoraSettings

    @classmethod
    def leaves(cls, edge: ModelConfig, settings: MixLoraSettings) -> dict[str, Any]:
        router = Leaf((edge.width, settings.experts), ("embed", "experts"), "unit")
        own = settings.attention
        attention = lora_leaves(edge, linears(edge, own), settings.rank) if own else {}
        return {
            "experts": expert_leaves(edge, settings.experts, settings.rank, "per_layer"),
            "routers": {"ffn": router.stack(edge.layers)},
            "attention": attention,
        }

    @classmethod
    def first(cls, edge: ModelConfig, settings: MixLoraSettings, key: jax.Array) -> dict[str, Any]:
        trained = initialise(cls.leaves(edge, settings), key)
        return {**trained, "routers": {"ffn": trained["routers"]["ffn"] * ROUTER_STD}}

    @classmethod
    def routed(cls, trained: Any, settings: MixLoraSettings, identity: str = "") -> Routed:
        return Routed(
            trained["experts"],
            trained["routers"],
            trained.get("attention", {}),
            settings.alpha / settings.rank,
            settings.top_k,
            identity,
        )

    @classmethod
    def balance(
        cls,
        settings: MixLoraSettings,
        sums: Sums,
        tokens: Float[Array, "B"],
        sources: Int[Array, "B"] | None = None,
    ) -> Float[Array, ""]:
        return settings.balance * load_balance(sums["ffn"], tokens)


def load_balance(
    sums: dict[str, Float[Array, "L B E"]], tokens: Float[Array, "B"]
) -> Float[Array, ""]:
    """E sum_i f_i p_i over the real tokens of all layers together; f has no gradient.

    `sums` are those of the router over the real tokens of each row.
    """
    layers, _, experts = sums["kept"].shape
    total = layers * jnp.sum(tokens)
    share = jax.lax.stop_gradient(jnp.sum(sums["kept"], axis=(0, 1)) / total)
    mean = jnp.sum(sums["probability"], axis=(0, 1)) / total
    return experts * jnp.sum(share * mean)
