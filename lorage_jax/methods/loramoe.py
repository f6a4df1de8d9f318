"""LoRAMoE (arXiv 2312.09979): all experts of each linear layer of the FFN, weighed per token.

Gate, up and down have a router each, which reads that layer's own input; its softmax over all N
experts weighs their updates. There is no top K. The weights depend on the token, so nothing can be
merged. The localised balance term, off by default as in the authors' script, is the squared
coefficient of variation of the weights per row and expert, where rows of one kind are to prefer one
half of the experts: I * Q with I = 1 + delta or 1 - delta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.data.pipeline import Batches
from lorage_jax.fields import check_types, require
from lorage_jax.files.manifest import Kind
from lorage_jax.generator.pool import expert_leaves
from lorage_jax.methods.lora import Shown
from lorage_jax.methods.method import register
from lorage_jax.methods.parts import parts_kind
from lorage_jax.methods.routed import RoutedMethod, Sums, check_numbers
from lorage_jax.models.experts import Routed
from lorage_jax.models.leaves import Leaf, initialise
from lorage_jax.train.experiment import settings_of
from lorage_jax.train.step import per_prompt


@dataclass(frozen=True)
class LoraMoeSettings:
    """Settings of the method `loramoe`; the defaults are those of the authors' script."""

    experts: int = 8
    rank: int = 4
    alpha: float = 32.0
    dropout: float = 0.05
    balance: float = 0.0  # weight of the balance term; the paper has 0.1
    delta: float = 0.0  # how much rows are to prefer one half of the experts; the paper has 0.1
    first: tuple[int, ...] = (0,)  # numbers of the `data.sources` that are to prefer the first half
    prompt: Shown = "in_context"  # the edge reads the system prompt before each query, or not

    def __post_init__(self):
        check_types(self)
        check_numbers(self)
        require(0 <= self.delta < 1, f"delta is {self.delta}; expected 0 <= delta < 1.")
        require(
            self.delta == 0 or self.experts % 2 == 0,
            f"delta needs two halves of experts; got {self.experts} experts.",
        )


@register
@dataclass(frozen=True, eq=False)
class LoraMoe(RoutedMethod):
    """All experts of every linear layer of the FFN, weighed per token."""

    name: ClassVar[str] = "loramoe"
    what: ClassVar[str] = "LoRAMoE: each token weighs all LoRA experts of a layer, unmerged"
    result: ClassVar[str] = "loramoe"
    kind: ClassVar[Kind] = parts_kind("loramoe", "a trained LoRAMoE")
    settings: ClassVar[type | None] = LoraMoeSettings

    @classmethod
    def leaves(cls, edge: ModelConfig, settings: LoraMoeSettings) -> dict[str, Any]:
        experts = expert_leaves(edge, settings.experts, settings.rank, "per_layer")
        routers = {}
        for name, one in experts.items():
            inside, axis = one["a"].shape[2], one["a"].axes[2]
            leaf = Leaf((inside, settings.experts), (axis, "experts"), "kaiming")
            routers[name] = leaf.stack(edge.layers)
        return {"experts": experts, "routers": routers}

    @classmethod
    def first(cls, edge: ModelConfig, settings: LoraMoeSettings, key: jax.Array) -> dict[str, Any]:
        return initialise(cls.leaves(edge, settings), key)

    @classmethod
    def routed(cls, trained: Any, settings: LoraMoeSettings, identity: str = "") -> Routed:
        scale = settings.alpha / settings.rank
        return Routed(trained["experts"], trained["routers"], {}, scale, None, identity)

    @classmethod
    def balance(
        cls,
        settings: LoraMoeSettings,
        sums: Sums,
        tokens: Float[Array, "B"],
        sources: Int[Array, "B"] | None = None,
    ) -> Float[Array, ""]:
        if settings.balance == 0:
            return jnp.zeros(())
        kinds = None
        if sources is not None:
            kinds = jnp.isin(sources, jnp.asarray(settings.first)).astype(jnp.int32)
        given = (tokens, kinds, settings.delta)
        terms = [localised_balance(one["probability"], *given) for one in sums.values()]
        return settings.balance * sum(terms, jnp.zeros(()))

    @classmethod
    def completed(
        cls, config: ExperimentConfig, batches: Batches
    ) -> Callable[[Batch], Batch] | None:
        """With the numbers of sources, if rows of some are to prefer the first half of experts."""
        if not _asks_sources(settings_of(cls, config)):
            return None
        require(
            config.data.packed_rows is None,
            "delta needs rows of one source each, but packed_rows puts several texts into a row. "
            "Leave one of them out.",
        )
        return batches.with_sources

    @classmethod
    def longest(cls, config: ExperimentConfig, batch: Batch) -> Batch:
        if not _asks_sources(settings_of(cls, config)):
            return batch
        return batch.replace(sources=per_prompt(batch.prompts, 1, jnp.int32))


def _asks_sources(settings: LoraMoeSettings) -> bool:
    """True if the balance term tells the rows of some sources from others."""
    return settings.balance != 0 and settings.delta != 0


def localised_balance(
    sums: Float[Array, "L B N"],
    tokens: Float[Array, "B"],
    kinds: Int[Array, "B"] | None = None,
    delta: float = 0.0,
) -> Float[Array, ""]:
    """Var(Z) / mean(Z)^2 of Z = I * Q over rows and experts, summed over the layers.

    Q is the mean weight of each expert in a row, so that lengths of rows do not count.

    Args:
        sums: of one router's weights over the real tokens of each row.
        tokens: real tokens of each row; a row with 0 does not count.
        kinds: 1 for rows that are to prefer the first half of the experts, 0 for the others.
        delta: how much they are to prefer them.
    """
    z, real = sums / jnp.maximum(tokens, 1)[:, None], tokens > 0
    if kinds is not None:
        first = jnp.arange(sums.shape[-1]) < sums.shape[-1] // 2
        z = z * jnp.where(first[None] == (kinds[:, None] == 1), 1 + delta, 1 - delta)
    where = jnp.broadcast_to(real[:, None], z.shape)
    mean = jnp.mean(z, axis=(1, 2), where=where)
    variance = jnp.var(z, axis=(1, 2), ddof=1, where=where)
    return jnp.sum(variance / (mean**2 + 1e-10))
