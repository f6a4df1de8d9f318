"""The pool of LoRA experts as data: the decoder applies it, the generator trains it."""

from __future__ import annotations

from typing import Any

import flax.struct


class Pool(flax.struct.PyTreeNode):
    """The arrays of all experts, and how gates combine them.

    `experts`: for each of gate, up, down the factors `a` [L, E, in, R] and `b` [L, E, R, out];
    with `scope` "shared", without the layer axis. Or anything that jax maps over these arrays, such
    as their shardings.
    """

    experts: dict[str, Any]
    combine: str = flax.struct.field(pytree_node=False)  # "factors" or "products", see `assemble`
    scale: float = flax.struct.field(pytree_node=False)  # alpha / R
    scope: str = flax.struct.field(pytree_node=False)  # "per_layer" or "shared"
    generator: str = flax.struct.field(pytree_node=False, default="")  # fingerprint, once trained

    @property
    def count(self) -> int:
        """The number of experts, E."""
        return self.experts["gate"]["a"].shape[-3]

    @property
    def rank(self) -> int:
        """The rank of each expert, R."""
        return self.experts["gate"]["a"].shape[-1]
