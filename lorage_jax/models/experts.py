"""LoRA experts as data: a pool that gates combine, or experts that routers in the layers choose."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp

from lorage_jax.config import PROJECTIONS


class Pool(flax.struct.PyTreeNode):
    """The arrays of all experts, and how gates combine them.

    Attributes:
        experts: for each projection of the FFN, the factors `a` [L, E, in, R] and `b`
            [L, E, R, out]; with scope "shared", without the layer axis. Also any tree of the same
            structure, such as the shardings of these arrays.
        combine: "factors" or "products", see `generator.pool.assemble`.
        scale: alpha / R.
        scope: "per_layer" or "shared".
        generator: fingerprint of the generator; "" before it is trained.
        input_first: `a` is [L, in, E, R], see `for_decoding`.
    """

    experts: dict[str, Any]
    combine: str = flax.struct.field(pytree_node=False)
    scale: float = flax.struct.field(pytree_node=False)
    scope: str = flax.struct.field(pytree_node=False)
    generator: str = flax.struct.field(pytree_node=False, default="")
    input_first: bool = flax.struct.field(pytree_node=False, default=False)

    def __repr__(self) -> str:
        """One line, without the values of the experts, which may be anything."""
        return (
            f"Pool({_size(self.experts)}, {self.combine}, {self.scope}, scale {self.scale:g}, "
            f"generator {self.generator[:19] or 'untrained'})"
        )

    def for_decoding(self) -> Pool:
        """A copy for decoding unmerged, which multiplies with `a` of all experts as one matrix.

        In the order of `experts`, every step of decoding would copy that matrix.
        """
        assert not self.input_first
        experts = {
            name: factors | {"a": jnp.swapaxes(factors["a"], -3, -2)}
            for name, factors in self.experts.items()
        }
        return self.replace(experts=experts, input_first=True)

    @property
    def count(self) -> int:
        """The number of experts, E."""
        return self._b.shape[-3]

    @property
    def rank(self) -> int:
        """The rank of each expert, R."""
        return self._b.shape[-2]

    @property
    def projections(self) -> tuple[str, ...]:
        """The projections that the experts change, in the order of the arithmetic."""
        return tuple(name for name in PROJECTIONS if name in self.experts)

    @property
    def _b(self) -> Any:
        return next(iter(self.experts.values()))["b"]


class Routed(flax.struct.PyTreeNode):
    """LoRA experts of the FFN, which routers inside the layers weigh token by token.

    It stands where a `Pool` does, and needs no gates.

    Attributes:
        experts: for each projection of the FFN, the factors `a` [L, E, in, R] and `b`
            [L, E, R, out].
        routers: with `top_k`, one router [L, D, E] called `ffn`, whose gates mix the outputs of
            whole FFNs; otherwise one per projection, [L, in, E], which weighs its updates.
        adapters: plain LoRA of other linear layers, as `Decoder` takes them; may be empty.
        scale: alpha / R of all of them.
        top_k: experts per token; None means all, by their probabilities.
        generator: fingerprint of the trained parts; "" before they are trained.
    """

    experts: dict[str, Any]
    routers: dict[str, Any]
    adapters: dict[str, Any]
    scale: float = flax.struct.field(pytree_node=False)
    top_k: int | None = flax.struct.field(pytree_node=False, default=None)
    generator: str = flax.struct.field(pytree_node=False, default="")

    def __repr__(self) -> str:
        """One line, without the values of the experts, which may be anything."""
        return (
            f"Routed({_size(self.experts)}, top_k {self.top_k}, scale {self.scale:g}, "
            f"generator {self.generator[:19] or 'untrained'})"
        )


Experts = Pool | Routed


def _size(experts: dict[str, Any]) -> str:
    """The projections, with the number of experts and their rank if the factors are arrays."""
    first = next(iter(experts.values()), None)
    shape = getattr(first.get("b") if isinstance(first, dict) else None, "shape", ())
    size = f"{shape[-3]} experts of rank {shape[-2]}" if len(shape) >= 3 else "experts"
    return f"{size} on {', '.join(name for name in PROJECTIONS if name in experts)}"


def nameless(experts: Experts | None) -> Experts | None:
    """The experts without their fingerprint, so that all generators share compiled programs."""
    return None if experts is None else experts.replace(generator="")
